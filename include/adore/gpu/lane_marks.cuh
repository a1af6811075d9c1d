// SPDX-License-Identifier: Apache-2.0
// At the end of a step, for policies that release nothing: which tokens the next queries attend.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/lane_threshold.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/order_key.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// Marks the best of the tokens that may be marked and unmarks the newer ones. All threads of the
/// lane call it together, after its releases.
///
/// Source: the same rule as `adore::mark`.
/// Cost:   a pass over the slots per count of `reached_by_largest`.
template <marks_tokens P, int Warps>
static __device__ __noinline__ void mark_lane(lane_end<P> const& end,
                                              decision_scratch<Warps>& shared) {
  ledger_view<P> const& ledger = end.ledger;
  sync_lane(end.share);  // states, slots and books are written
  lane_view view = end.view;
  view.occupied = __ldcg(&ledger.lanes[end.lane].occupied);
  lane_state_of<P> const lane_state = *ledger.lane_state(end.lane);
  index_t const wanted = end.policy.marks(view);
  if (wanted == unbounded) return;
  position_t const last = end.policy.last_markable(view);
  slot_state_of<P>* const states = ledger.states_of(end.lane);
  auto const for_tokens = [&](auto&& visit) {
    for (index_t s = end.share.first + end.share.thread(); s < end.share.end;
         s += end.share.threads()) {
      position_t const p = __ldcg(end.positions() + s);
      if (p >= 0 && p <= view.newest) visit(states[s], p);
    }
  };
  auto const key_of = [&](slot_state_of<P> const& state, position_t p) {
    return order_key(
        priority_of(end.policy, shown_slot(end.policy, p, state), view, state, lane_state),
        p,
        releases_newest_of_equals<P>);
  };
  unsigned turn = 0;
  std::uint64_t const threshold = reached_by_largest(wanted, [&](std::uint64_t key) {
    index_t count = 0;
    for_tokens([&](slot_state_of<P> const& state, position_t p) {
      if (p <= last && key_of(state, p) >= key) ++count;
    });
    return sum_in_lane(count, end.share, shared, turn);
  });
  for_tokens([&](slot_state_of<P>& state, position_t p) {
    if (p > last) {
      end.policy.unmark(state);
    } else {
      end.policy.mark(state, key_of(state, p) >= threshold);
    }
  });
}

}  // namespace adore::gpu::detail
