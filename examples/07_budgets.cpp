// SPDX-License-Identifier: Apache-2.0
// Budgets are numbers in the cache's books, one per lane, and may change while a text runs: a layer
// may keep more than another, and a cache may shrink when memory is short.
//
// Look at three rules. A smaller budget releases at once. A larger one brings nothing back. Room
// that is reserved for an answer is made before it comes, so that nothing leaves while it does.
#include <adore/adore.hpp>

#include <cstdio>
#include <vector>

constexpr adore::index_t layers = 2, channels = 4;
using cache_type = adore::kv_cache<adore::host_store<float>, adore::streaming_llm>;

/// New tokens for every layer. They are not attended, since a window does not look at attention.
void feed(cache_type& cache, int tokens) {
  std::vector<float> const key(channels), value(channels);
  for (int token = 0; token < tokens; ++token) {
    cache.begin_step();
    for (adore::index_t layer = 0; layer < layers; ++layer) {
      cache.append(layer, {key.data(), 1, 1, channels}, {value.data(), 1, 1, channels});
    }
    cache.end_step();
  }
}

/// Prints what both layers keep; true if it is so many tokens.
bool keeps(cache_type const& cache, char const* when, std::size_t first, std::size_t second) {
  for (adore::index_t layer = 0; layer < layers; ++layer) {
    std::printf("%-26s layer %d:", layer == 0 ? when : "", layer);
    for (adore::position_t const position : cache.kept(0, layer)) std::printf(" %d", position);
    std::printf("\n");
  }
  bool const right = cache.kept(0, 0).size() == first && cache.kept(0, 1).size() == second;
  if (!right) std::printf("wrong: %zu and %zu tokens should be there\n", first, second);
  return right;
}

int main() {
  // scope layer: each layer is a lane with a kept set and a budget of its own
  cache_type cache{adore::host_store<float>{{.layers = layers, .slots = 13, .channels = channels}},
                   adore::streaming_llm{.sinks = 2, .window = 8},
                   {.reach = adore::scope::layer, .positions = adore::position_scheme::original}};
  cache.open(0);
  feed(cache, 30);
  bool right = keeps(cache, "30 tokens, budget 10", 10, 10);

  cache.set_budget(0, /*layer*/ 1, /*kv_head*/ 0, 6);
  right = keeps(cache, "layer 1 at 6, at once", 10, 6) && right;

  cache.set_budget(0, /*layer*/ 1, /*kv_head*/ 0, 12);
  right = keeps(cache, "layer 1 at 12, not yet", 10, 6) && right;

  feed(cache, 20);
  right = keeps(cache, "20 tokens later", 10, 12) && right;

  cache.reserve(0, 4);
  right = keeps(cache, "4 places reserved", 6, 8) && right;

  feed(cache, 3);
  right = keeps(cache, "3 tokens of an answer", 9, 11) && right;
  return right ? 0 : 1;
}
