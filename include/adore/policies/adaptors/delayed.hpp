// SPDX-License-Identifier: Apache-2.0
// Lets newcomers gather a score before they compete, for policies in which a newcomer's first score
// would be its last.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// A token is no candidate in the steps of the first `queries` queries that see it, its own among
/// them. With `counts` = false the attention that it receives meanwhile is forgotten too: the
/// attention of neighbours, which all newcomers get, then says nothing about them. That is what
/// sets it apart from protected recent tokens. In a call of several queries the last one decides
/// for all.
template <eviction_policy P>
struct delayed : forwards<delayed<P>, P> {
  P of{};
  index_t queries = 8;
  bool counts = true;
  using slot_state = slot_state_of<P>;

  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view lane) const noexcept {
    index_t const own = newest_protected_by(of, lane);
    return own > queries ? own : queries;
  }
  ADORE_HOST_DEVICE constexpr void observe(slot_state& state,
                                           slot_view slot,
                                           lane_view lane,
                                           float weight,
                                           index_t calls) const noexcept requires
      observes_attention<P> {
    bool const waits = lane.newest - slot.position < queries;
    of.observe(state, slot, lane, counts || !waits ? weight : 0.0F, calls);
  }
  constexpr void validate() const {
    of.validate();
    require_field(queries >= 0, "delayed.queries", queries, "must not be negative");
  }
};

}  // namespace adore
