// SPDX-License-Identifier: Apache-2.0
// What attention sinks are (arXiv:2309.17453). The weights of a softmax add up to one, even for a
// query that looks for nothing. Trained models learn to put the leftover on the first token, whose
// value then says next to nothing. Here that is made by hand: the key of token 0 matches every
// query, its value is zero; all other tokens have a plain key and the value one.
//
// Look at the rows of weights: without token 0 its weight has to go to tokens that nobody asked
// for. Then look at what RoPE does to the sink's weight as the text grows.
#include <adore/adore.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

struct last_query {
  std::vector<float> weights;
  float output = 0.0F;
  float sink_weight = 0.0F;
};

/// The last query of a text of `length` tokens under a policy.
template <class Policy>
last_query read(Policy const& policy, int length, adore::cache_options const& options) {
  adore::kv_cache cache{adore::host_store{{.slots = length + 1, .channels = 4}}, policy, options};
  cache.open(0);
  last_query last;
  for (int token = 0; token < length; ++token) {
    std::vector<float> const query{0.0F, 3.0F, 0.0F, 0.0F};
    std::vector<float> const key{0.0F, token == 0 ? 4.0F : 0.0F, 0.0F, 0.0F};
    std::vector<float> const value{token == 0 ? 0.0F : 1.0F, 0.0F, 0.0F, 0.0F};
    std::vector<float> output(4);
    cache.begin_step();
    cache.append(0, {key.data(), 1, 1, 4}, {value.data(), 1, 1, 4});
    cache.attend(0,
                 {query.data(), 1, 1, 4},
                 {output.data(), 1, 1, 4},
                 [&](adore::attention_record const& seen) {
                   last.weights.assign(seen.weights.begin(), seen.weights.end());
                   last.sink_weight = seen.positions[0] == 0 ? seen.weights[0] : 0.0F;
                 });
    cache.end_step();
    last.output = output[0];
  }
  return last;
}

void print(char const* name, last_query const& last) {
  std::printf("%-15s output %.3f, weights", name, last.output);
  for (float const weight : last.weights) std::printf(" %.3f", weight);
  std::printf("\n");
}

int main() {
  adore::streaming_llm const with_sink{.sinks = 1, .window = 7};
  adore::cache_options const plain{.positions = adore::position_scheme::original};
  last_query const full = read(adore::keep_all{}, 12, plain);
  last_query const window = read(adore::sliding_window{.size = 8}, 12, plain);
  last_query const streaming = read(with_sink, 12, plain);
  print("keep_all", full);
  print("sliding_window", window);
  print("streaming_llm", streaming);

  // RoPE turns a key by its position, so a score depends on how far back the token is. In the text
  // (original) the sink falls behind; in the cache (cache_index) it always stands 8 places back.
  adore::rope const rotation(4, 10000.0, adore::rope_pairs::halves);
  adore::cache_options const in_the_text{.positions = adore::position_scheme::original,
                                         .rotation = rotation};
  adore::cache_options const in_the_cache{.positions = adore::position_scheme::cache_index,
                                          .rotation = rotation};
  std::printf("\nweight of the sink by length of the text, positions original and cache_index\n");
  float lowest_in_text = 1.0F, lowest_in_cache = 1.0F;
  for (int const length : {9, 50, 100, 200, 400}) {
    float const text = read(with_sink, length, in_the_text).sink_weight;
    float const cached = read(with_sink, length, in_the_cache).sink_weight;
    std::printf("%5d  %.3f  %.3f\n", length, text, cached);
    lowest_in_text = std::fmin(lowest_in_text, text);
    lowest_in_cache = std::fmin(lowest_in_cache, cached);
  }

  bool const sink_matters = std::abs(streaming.output - full.output) < 0.05F &&
                            std::abs(window.output - full.output) > 0.5F;
  if (!sink_matters) std::puts("wrong: the output should need the sink, and nothing else");
  bool const place_matters = lowest_in_text < 0.1F && lowest_in_cache > 0.95F;
  if (!place_matters) std::puts("wrong: the sink should keep its weight by cache_index only");
  return sink_matters && place_matters ? 0 : 1;
}
