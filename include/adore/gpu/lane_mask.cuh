// SPDX-License-Identifier: Apache-2.0
// Which keys of a lane a policy hides from a query.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

/// Whether the policy lets a query see a key that is in the lane and not newer.
///
/// @param next   of the row, before the step
/// @param slot   of the key, whose position is `key`
/// @param query  the position of one of the step's new tokens
template <masks_attention P>
__device__ __forceinline__ bool sees_key(P const& policy,
                                         ledger_view<P> const& ledger,
                                         index_t lane,
                                         position_t next,
                                         index_t slot,
                                         position_t key,
                                         position_t query,
                                         head_view head) {
  if constexpr (std::is_empty_v<slot_state_of<P>>) {
    return policy.sees(slot_view{query, query}, {}, slot_view{key, key}, {}, head);
  } else {
    auto const state_of = [&](index_t s, position_t p) -> slot_state_of<P> {
      // that of a new token begins with the decision, unless the token came with it
      bool const begun = comes_with_state<P> || p < next;
      return begun && s >= 0 ? ledger.states_of(lane)[s] : slot_state_of<P>{};
    };
    index_t const place = query % ledger.max_new;
    slot_state_of<P> const own =
        state_of(ledger.new_slots[static_cast<std::int64_t>(lane) * ledger.max_new + place], query);
    slot_state_of<P> const other = state_of(slot, key);
    return policy.sees(
        shown_slot(policy, query, own), own, shown_slot(policy, key, other), other, head);
  }
}

}  // namespace adore::gpu::detail
