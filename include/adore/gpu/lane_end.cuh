// SPDX-License-Identifier: Apache-2.0
// A lane at the end of its step: what its books say, how its tokens are ranked, and how one leaves.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// What the ledger says of a lane and its row.
struct step_books {
  row_books row;
  lane_books lane;
};
template <eviction_policy P>
__device__ __forceinline__ step_books books_at(ledger_view<P> const& ledger,
                                               index_t row,
                                               index_t lane) {
  return {ledger.rows[row], ledger.lanes[lane]};
}

namespace detail {

/// The layers and KV heads from which a lane sums what the policy learns; layers are those of the
/// arrays given: all in scope model, else the one at hand.
struct lane_sources {
  index_t layers, first_head, end_head;
};
template <eviction_policy P>
__device__ __forceinline__ lane_sources sources_of(ledger_view<P> const& ledger,
                                                   index_t lane_head) {
  bool const one_head = ledger.reach == scope::kv_head;
  return {ledger.reach == scope::model ? ledger.layers : 1,
          one_head ? lane_head : 0,
          one_head ? lane_head + 1 : ledger.kv_heads};
}

/// A lane at the end of its step, as each of its threads sees it.
template <eviction_policy P>
struct lane_end {
  static constexpr bool has_state = !std::is_empty_v<slot_state_of<P>>;

  ledger_view<P> const& ledger;
  P const& policy;
  index_t row, lane;
  position_t next;   // of the row, before the step
  index_t accepted;  // of its new tokens
  lane_view view;    // new tokens included
  candidate_range range;
  lane_state_of<P> lane_state;
  lane_share share;

  __device__ __forceinline__ position_t* positions() const {
    return ledger.positions + ledger.cell(lane);
  }
  __device__ __forceinline__ slot_state_of<P> state_in(index_t slot) const {
    return ledger.states_of(lane)[has_state ? slot : 0];
  }
  __device__ __forceinline__ bool leads() const { return share.rank == 0 && share.thread() == 0; }

  __device__ __forceinline__ keyed_slot key_of(index_t s,
                                               position_t p,
                                               slot_state_of<P> const& state) const {
    if (p < range.first || p > range.last) return {no_key, -1};
    return {order_key(priority_of(policy, shown_slot(policy, p, state), view, state, lane_state),
                      p,
                      releases_newest_of_equals<P>),
            s};
  }
  static __device__ __forceinline__ position_t position_in(keyed_slot which) {
    auto const low = static_cast<std::uint32_t>(which.key);
    return static_cast<position_t>(releases_newest_of_equals<P> ? ~low : low);
  }
  /// Sets a slot aside for a token to come. By the leader.
  __device__ __forceinline__ void reserve(index_t slot, position_t coming) const {
    positions()[slot] = coming;
    // its score comes before it does
    if constexpr (scores_tokens<P>) ledger.states_of(lane)[slot] = {};
  }
  /// Notes for whoever asks that a token has left. By the leader.
  __device__ __forceinline__ void tell(position_t p, index_t slot) const {
    if (p < ledger.past.tokens) {
      std::int64_t const place = std::int64_t{row} * ledger.past.tokens + p;
      ledger.past.released[place] = 1;
      unsigned const order = ledger.past.departed[row]++;
      if (order < unsigned{most_departures}) {
        ledger.past.departures[row * most_departures + static_cast<index_t>(order)] = {p, slot};
      }
      if constexpr (!scores_tokens<P>) {
        slot_state_of<P> const state = state_in(slot);
        ledger.past.priorities[place] =
            priority_of(policy, shown_slot(policy, p, state), view, state, lane_state);
        if constexpr (remembers_states<P>) ledger.past_states[place] = state;
      }
    }
    if (ledger.released.capacity == 0) return;
    unsigned long long const number = atomicAdd(ledger.released.written, 1ULL) + 1;
    released_entry const entry{number, row, lane, p, next + accepted - 1, number};
    uint4 words[2];
    __builtin_memcpy(words, &entry, sizeof(words));
    auto* const halves =
        reinterpret_cast<uint4*>(ledger.released.entries + (number - 1) % ledger.released.capacity);
    halves[0] = words[0];
    halves[1] = words[1];
  }
};
/// A lane at the end of its step, before the decision.
template <eviction_policy P>
__device__ __forceinline__ lane_end<P> lane_end_of(ledger_view<P> const& ledger,
                                                   P const& policy,
                                                   index_t row,
                                                   index_t layer,
                                                   index_t kv_head,
                                                   step_books const& books,
                                                   index_t accepted,
                                                   lane_share const& share) {
  lane_view const view{books.row.next + accepted - 1,
                       books.lane.occupied + accepted,
                       books.lane.budget,
                       ledger.reach == scope::model ? 0 : layer,
                       ledger.reach == scope::kv_head ? kv_head : 0,
                       books.row.seed};
  index_t const lane = ledger.lane(row, layer, kv_head);
  return {.ledger = ledger,
          .policy = policy,
          .row = row,
          .lane = lane,
          .next = books.row.next,
          .accepted = accepted,
          .view = view,
          .range = candidates_of(policy, view),
          .lane_state = *ledger.lane_state(lane),
          .share = share};
}

}  // namespace detail
}  // namespace adore::gpu
