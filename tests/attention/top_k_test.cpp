// SPDX-License-Identifier: Apache-2.0
// The strongest keys of a query, and one set for all layers.
#include "adore/attention/top_k.hpp"

#include "support/literal_sets.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

position_list top(std::vector<float> const& scores, index_t count, bool always_last = false) {
  std::vector<std::uint8_t> selected(scores.size(), 7);
  mark_top_k(scores, count, always_last, selected);
  position_list chosen;
  for (std::size_t j = 0; j < selected.size(); ++j) {
    if (selected[j] == 1) chosen.push_back(static_cast<position_t>(j));
  }
  return chosen;
}

std::vector<float> layer(position_list const& weights) {
  std::vector<float> result;
  for (int const w : weights) result.push_back(static_cast<float>(w) / 16.0F);
  return result;
}

}  // namespace

TEST_CASE("among equal scores the newest is among the strongest") {
  std::vector<float> const scores{2.0F, -1.0F, 0.5F, 0.5F, 0.0F};
  CHECK(top(scores, 2) == position_list{0, 3});
  CHECK(top(scores, 2, true) == position_list{0, 4});
  CHECK(top(scores, 1, true) == position_list{4});
  CHECK(top(scores, 5) == from_to(0, 5));
  CHECK(top(scores, 99) == from_to(0, 5));
}

TEST_CASE("the strongest keys equal the literal ones") {
  std::mt19937 random(2);
  for (int run = 0; run < 300; ++run) {
    std::vector<float> scores(1 + random() % 20);
    for (float& s : scores) s = static_cast<float>(random() % 5) - 2.0F;
    auto const count = static_cast<index_t>(1 + random() % 22);
    for (bool const self : {false, true}) {
      CHECK(top(scores, count, self) == literal::top_k(scores, count, self));
    }
  }
}

TEST_CASE("one set for all layers: by votes, then mass, then age") {
  std::vector<std::vector<float>> const weights{
      layer({5, 1, 4, 0, 3, 3}), layer({6, 2, 1, 0, 4, 3}), layer({1, 5, 2, 0, 2, 6})};
  CHECK(uniform_top_k(weights, 4) == position_list{0, 5, 4, 1});
  CHECK(uniform_top_k(weights, 6).size() == 6);
  CHECK(uniform_top_k(weights, 9).size() == 6);
  // where all layers agree only half the set has votes; mass fills the rest
  std::vector<std::vector<float>> const agreed{weights[0], weights[0]};
  CHECK(uniform_top_k(agreed, 4) == position_list{0, 2, 5, 4});
  CHECK(uniform_top_k({}, 4).empty());
}

}  // namespace adore::testing
