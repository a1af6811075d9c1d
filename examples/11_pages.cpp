// SPDX-License-Identifier: Apache-2.0
// Two conversations begin with the same prompt and share a pool of pages. Look at the last column:
// the prompt is there once; each conversation takes a page when its last one is full, and a copy of
// a shared page only when it is about to write into it. At its budget a conversation fills the
// holes that the policy leaves and takes nothing more; when it gets a smaller budget, its tokens
// are moved together and whole pages come back.
#include <adore/adore.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

constexpr adore::index_t channels = 8, page_size = 4, prompt = 18, budget = 22;

/// Made-up [token, head, channel] of a model.
std::vector<float> project(adore::index_t first, adore::index_t tokens, float use) {
  std::vector<float> result;
  for (adore::index_t token = first; token < first + tokens; ++token) {
    for (adore::index_t channel = 1; channel <= channels; ++channel) {
      result.push_back(std::sin(use * static_cast<float>(token * channel)));
    }
  }
  return result;
}

/// The model's part of a step or prompt that has begun: one layer, one head.
template <class Cache>
void run(Cache& cache, adore::index_t first, adore::index_t tokens) {
  std::vector<float> const query = project(first, tokens, 0.3F), key = project(first, tokens, 0.5F);
  std::vector<float> const value = project(first, tokens, 0.7F);
  std::vector<float> output(query.size());
  cache.append(0, {key.data(), tokens, 1, channels}, {value.data(), tokens, 1, channels});
  cache.attend(0, {query.data(), tokens, 1, channels}, {output.data(), tokens, 1, channels});
  cache.end_step();
}

int main() {
  // Two full conversations need 12 pages in the end; a pool may have fewer and then says so. The
  // store is made in place: a cache owns its store, and a copy would have memory of its own. A
  // random sample stays, the worst for pages: holes are everywhere.
  adore::kv_cache cache{
      adore::paged_store{{.sequences = 2, .slots = budget + 1, .channels = channels},
                         {.page_size = page_size, .pages = 12}},
      adore::random_reservoir{.size = budget}};
  bool as_told = true;
  auto const report = [&](char const* what, adore::index_t expected) {
    adore::index_t const taken = cache.store().pages() - cache.store().free_pages();
    std::printf("%-50s %2d pages\n", what, taken);
    if (taken != expected) std::printf("wrong: it should be %d\n", expected);
    as_told = as_told && taken == expected;
  };

  cache.open(0);
  cache.begin_prompt({.row = 0, .count = prompt});
  run(cache, 0, prompt);
  report("a prompt of 18 tokens", 5);
  cache.fork(/*from*/ 0, /*to*/ 1);
  report("a second conversation with the same prompt", 5);

  // where the prompt lies: FlashInfer's three arrays, ready to be copied to a device. Page 0 is
  // nobody's: a write to a slot that was not reserved goes there unnoticed.
  adore::page_lists const lists = cache.store().lists();
  bool const same_pages = lists.indptr[1] == 5 && lists.indices[0] == lists.indices[5] &&
                          lists.indices[4] == lists.indices[9] && lists.last_page_len[1] == 2;

  cache.begin_step();  // one new token each, both in the prompt's last page: one of them copies it
  run(cache, 20, 2);
  report("one token more in each", 6);
  for (adore::index_t token = 22; token < 25; ++token) {
    cache.begin_step(adore::row_tokens{.row = 1});
    run(cache, token, 1);
  }
  report("three more in the second", 7);

  for (adore::index_t token = 30; token < 130; ++token) {
    cache.begin_step(adore::row_tokens{.row = 0});
    run(cache, token, 1);
  }
  std::vector<adore::position_t> const second = cache.kept(1);
  bool const untouched = second.size() == prompt + 4 && second.front() == 0 && second.back() == 21;
  // what it wrote over in the prompt's pages it wrote into copies
  report("a hundred more in the first, at its budget", 12);

  cache.set_budget(0, 9);
  report("a smaller budget for the first", 12);
  cache.compact(0);
  report("moved together", 9);
  cache.close(0);
  report("the first one is over", 6);
  cache.close(1);
  report("the second one too", 0);

  if (!same_pages) std::puts("wrong: both should hold the same pages");
  if (!untouched) std::puts("wrong: one conversation has lost tokens to the other");
  return as_told && same_pages && untouched ? 0 : 1;
}
