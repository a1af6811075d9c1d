// SPDX-License-Identifier: Apache-2.0
// Attention rows drawn at random in sixteenths, so that sums and halves of them are exact and equal
// ones are common.
#pragma once

#include "ledger_driver.hpp"
#include "tables.hpp"

#include <cstddef>
#include <optional>
#include <random>
#include <vector>

namespace adore::testing {

/// A row for each of `count` new tokens over the kept ones and the new ones up to itself.
inline std::vector<weight_row> random_rows(std::mt19937& random,
                                           position_list kept,
                                           position_t next,
                                           index_t count) {
  std::vector<weight_row> rows;
  for (index_t i = 0; i < count; ++i) {
    kept.push_back(next + i);
    rows.emplace_back();
    for (position_t const p : kept) {
      rows.back()[p] = static_cast<float>(random() % 17) / 16.0F;
    }
  }
  return rows;
}

/// Shows two policies the same attention for `steps` steps of up to `max_new` tokens, some of them
/// rejected, and checks that they keep the same tokens and release them in the same order.
template <eviction_policy P, eviction_policy Q>
void check_same_sets(P first, Q second, index_t steps, index_t max_new) {
  std::mt19937 random(17);
  ledger_driver<P> one(first, 3, 64, max_new);
  ledger_driver<Q> other(second, 3, 64, max_new);
  for (index_t i = 0; i < steps; ++i) {
    auto const count = 1 + static_cast<index_t>(random() % static_cast<unsigned>(max_new));
    auto const rows = random_rows(random, one.kept(), one.next(), count);
    bool const rejects = random() % 4 == 0;
    auto const accepted = rejects ? static_cast<index_t>(random() % unsigned(count + 1)) : count;
    CHECK(one.step(rows, accepted) == other.step(rows, accepted));
    REQUIRE(one.kept() == other.kept());
  }
}

}  // namespace adore::testing
