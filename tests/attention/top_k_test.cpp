// SPDX-License-Identifier: Apache-2.0
// The strongest keys of a query.
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

}  // namespace adore::testing
