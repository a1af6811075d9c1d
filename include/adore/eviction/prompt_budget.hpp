// SPDX-License-Identifier: Apache-2.0
// How many tokens of a dense prompt a lane keeps.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/types.hpp"

#include <algorithm>

namespace adore {

/// A lane's budget in the selection at the end of a dense prompt of `count` tokens, before a policy
/// has divided a layer's among the heads.
template <eviction_policy P>
index_t prompt_budget(ledger<P> const& books, index_t lane, index_t count) {
  if constexpr (budgets_prompt_lanes<P>) {
    return books.policy().lane_prompt_budget(
        books.shape(), books.layer_of(lane), books.head_of(lane), count);
  } else if constexpr (budgets_prompt<P>) {
    return books.policy().prompt_budget();
  } else {
    return books.budget(lane);
  }
}

/// The most tokens that stay in the lane; how a budget is divided is known when the prompt has been
/// attended, so that a head may then keep all of them.
template <eviction_policy P>
index_t most_of_prompt(ledger<P> const& books, index_t lane, index_t count) {
  return divides_budget<P> ? count : std::min(count, prompt_budget(books, lane, count));
}

}  // namespace adore
