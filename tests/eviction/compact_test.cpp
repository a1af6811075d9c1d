// SPDX-License-Identifier: Apache-2.0
// Moving kept rows together: by a gather, by the paper's matrix product, in any memory layout.
#include "adore/eviction/compact.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace adore::testing {

TEST_CASE("slicing a row out by a product leaves the others in order") {
  for (compaction const kind : {compaction::gather, compaction::matmul}) {
    std::vector<float> k{1, 2, 3, 4};
    std::array<index_t, 3> const order{0, 2, 3};  // row 1 of 4 leaves
    compact(kind, kv_view<float>(k.data(), 1, 1, 4, 1), 0, 0, order);
    CHECK(std::vector<float>(k.begin(), k.begin() + 3) == std::vector<float>{1, 3, 4});
  }
}

TEST_CASE("gather and product agree for several victims in strided memory") {
  // [channel, slot] of the second sequence and head, so that channels are 6 elements apart
  constexpr index_t slots = 6, channels = 5;
  std::vector<float> data(2 * 2 * slots * channels);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i) / 8.0F - 7.0F;
  auto product = data;
  auto const view = [](std::vector<float>& memory) {
    return kv_view<float>(
        memory.data(), 2, 2, slots, channels, 2 * slots * channels, slots * channels, 1, slots);
  };
  auto const before = data;
  std::array<index_t, 3> const order{5, 1, 2};
  compact(compaction::gather, view(data), 1, 1, order);
  compact(compaction::matmul, view(product), 1, 1, order);
  CHECK(data == product);
  std::size_t const begin = 3 * slots * channels;
  for (std::size_t i = 0; i < begin; ++i) CHECK(data[i] == before[i]);
  for (std::size_t c = 0; c < channels; ++c) {
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(data[begin + c * slots + i] ==
            before[begin + c * slots + static_cast<std::size_t>(order[i])]);
    }
  }
}

TEST_CASE("reusing slots moves nothing; a product spreads what is not a number") {
  float const infinity = std::numeric_limits<float>::infinity();
  std::vector<float> k{1, infinity, 3, 4};
  std::array<index_t, 3> const order{0, 2, 3};
  compact(compaction::slot_reuse, kv_view<float>(k.data(), 1, 1, 4, 1), 0, 0, order);
  CHECK(k == std::vector<float>{1, infinity, 3, 4});
  auto gathered = k;
  compact(compaction::gather, kv_view<float>(gathered.data(), 1, 1, 4, 1), 0, 0, order);
  CHECK(gathered[1] == 3.0F);
  compact(compaction::matmul, kv_view<float>(k.data(), 1, 1, 4, 1), 0, 0, order);
  CHECK(std::isnan(k[0]));
}

}  // namespace adore::testing
