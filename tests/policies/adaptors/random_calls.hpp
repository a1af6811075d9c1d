// SPDX-License-Identifier: Apache-2.0
// Random calls of several queries, some of them rejected, for policies that must agree to the last
// bit.
#pragma once

#include "support/literal_lane.hpp"
#include "support/random_rows.hpp"
#include "support/tables.hpp"

#include <random>
#include <vector>

namespace adore::testing {

struct random_call {
  std::vector<weight_row> rows;  // [query]
  index_t accepted;
};

/// 1 to 4 queries after `kept`, whose next token is `next`.
inline random_call draw_call(std::mt19937& random, position_list const& kept, position_t next) {
  index_t const count = 1 + static_cast<index_t>(random() % 4);
  bool const rejects = random() % 4 == 0;
  return {random_rows(random, kept, next, count),
          rejects ? static_cast<index_t>(random() % static_cast<unsigned>(count + 1)) : count};
}

inline position_list positions_of(std::vector<literal::release> const& released) {
  position_list all;
  for (literal::release const& one : released) all.push_back(one.position);
  return all;
}

}  // namespace adore::testing
