// SPDX-License-Identifier: Apache-2.0
// Speculative decoding: a draft of four tokens enters in one step, and the model accepts two. Then
// the sequence is forked, and two continuations go on from the same cache in one batch.
//
// Look at what is missing: a rollback. No state changes before `end_step`, so what the rejected
// tokens made the policy see is forgotten with them. The proof is a second cache that never saw
// them: it keeps the same tokens, and its next outputs are equal to the last bit.
#include <adore/adore.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

constexpr adore::index_t channels = 8;
using cache_type = adore::kv_cache<adore::host_store<float>, adore::decayed_h2o>;

/// Made-up [token, head, channel] of a model: something different for each word and each use.
std::vector<float> project(std::vector<int> const& words, float use) {
  std::vector<float> result;
  for (int const word : words) {
    for (int channel = 1; channel <= channels; ++channel) {
      result.push_back(2.0F * std::sin(use * static_cast<float>(word * channel)));
    }
  }
  return result;
}

/// One step of the model but for its end, which is the caller's; the output of attention.
std::vector<float> run(cache_type& cache,
                       std::vector<adore::row_tokens> const& rows,
                       std::vector<int> const& words) {
  auto const count = static_cast<adore::index_t>(words.size());
  std::vector<float> const query = project(words, 0.3F);
  std::vector<float> const key = project(words, 0.5F);
  std::vector<float> const value = project(words, 0.7F);
  std::vector<float> output(query.size());
  cache.begin_step(rows);
  cache.append(0, {key.data(), count, 1, channels}, {value.data(), count, 1, channels});
  cache.attend(0, {query.data(), count, 1, channels}, {output.data(), count, 1, channels});
  return output;
}

void print_kept(char const* when, std::vector<adore::position_t> const& kept) {
  std::printf("%-14s keeps", when);
  for (adore::position_t const position : kept) std::printf(" %d", position);
  std::printf("\n");
}

int main() {
  // room for two sequences; slots for the budget and the tokens of a draft
  cache_type cache{adore::host_store{{.sequences = 2, .slots = 16 + 4, .channels = channels}},
                   {.heavy = 8, .recent = 8, .factor = 0.9F},
                   {.max_new = 4}};
  cache.open(0);
  for (int word = 1; word <= 40; ++word) {
    run(cache, {{.row = 0}}, {word});
    cache.end_step();
  }
  cache_type never_saw_them = cache;

  // four words are drafted, and the model accepts the first two
  run(cache, {{.row = 0, .count = 4}}, {41, 42, 91, 92});
  cache.end_step(std::array{2});
  run(never_saw_them, {{.row = 0, .count = 2}}, {41, 42});
  never_saw_them.end_step();
  print_kept("the draft", cache.kept(0));
  bool equal = cache.kept(0) == never_saw_them.kept(0);

  // two continuations of the same text, side by side in one batch
  cache.fork(/*from*/ 0, /*to*/ 1);
  bool differ = false;
  for (int word = 43; word <= 60; ++word) {
    std::vector<float> const outputs = run(cache, {{.row = 0}, {.row = 1}}, {word, word + 100});
    std::vector<float> const alone = run(never_saw_them, {{.row = 0}}, {word});
    cache.end_step();
    never_saw_them.end_step();
    for (std::size_t channel = 0; channel < channels; ++channel) {
      equal = equal && outputs[channel] == alone[channel];
      differ = differ || outputs[channel] != outputs[channels + channel];
    }
  }
  print_kept("continuation 0", cache.kept(0));
  print_kept("continuation 1", cache.kept(1));

  if (!equal) std::puts("wrong: a rejected token, or the row beside, has left a trace");
  if (!differ) std::puts("wrong: the two continuations should have gone apart");
  return equal && differ ? 0 : 1;
}
