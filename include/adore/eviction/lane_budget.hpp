// SPDX-License-Identifier: Apache-2.0
// How many tokens a lane keeps at first, and the budgets for which it has no room.
#pragma once

#include "adore/concepts.hpp"
#include "adore/types.hpp"

#include <stdexcept>
#include <string>

namespace adore {

template <eviction_policy P>
constexpr index_t first_budget(P const& policy,
                               kv_shape const& shape,
                               index_t layer,
                               index_t kv_head) {
  if constexpr (budgets_lanes<P>) {
    return policy.lane_budget(shape, layer, kv_head);
  } else {
    return policy.budget();
  }
}

/// @param arrivals  tokens that a step may bring into the lane; -1: they find room by themselves
/// @throws std::invalid_argument unless the lane has slots for them beside its budget
inline void require_budget(index_t budget, index_t slots, index_t arrivals) {
  if (budget < 0) {
    throw std::invalid_argument("adore: budget = " + std::to_string(budget) +
                                ": must not be negative");
  }
  if (arrivals >= 0 && budget != unbounded && budget > slots - arrivals) {
    throw std::invalid_argument("adore: budget = " + std::to_string(budget) + ": the store has " +
                                std::to_string(slots) + " slots per lane and a step may bring " +
                                std::to_string(arrivals) + " tokens");
  }
}

/// @throws std::length_error ... if a budget that all heads share has been divided so
inline void require_share(index_t budget, index_t slots, index_t arrivals) {
  if (budget <= slots - arrivals) return;
  throw std::length_error("adore: a lane's share of the budget is " + std::to_string(budget) +
                          " tokens; the store has " + std::to_string(slots) + " slots per lane");
}

}  // namespace adore
