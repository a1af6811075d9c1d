// SPDX-License-Identifier: Apache-2.0
// The end of a lane's step inside a kernel: the policy observes, victims are released, and slots
// are reserved for the tokens to come.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_marks.cuh"
#include "adore/gpu/lane_release.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <type_traits>

namespace adore::gpu {

/// What a policy must leave alone to be decided here, one sentence per missing ability.
template <eviction_policy P>
struct checked_device_policy {
  static_assert(!recalls_tokens<P>, "adore::gpu: this cache does not recall tokens");
  using type = P;
};

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

/// Ends the step of one lane. All threads that share it call this, and meet in it after their last
/// use of the functions below.
///
/// @param books            the row's and the lane's, as they are before the decision
/// @param accepted         of the row's new tokens, how many stay; 1..count
/// @tparam Neighbours      slots that a thread looks at together, a power of two
/// @param positions_of     index_t slot -> `neighbours` from there on of `ledger.positions`, maybe
///                         from a faster place; slot is a multiple of `Neighbours`
/// @param states_of        the same of `ledger.states_of`
/// @param weights_of       the same of the weights of the step's accepted queries, see `observe`
/// @param squared_norm_of  index_t j -> squared norm of the j-th new key over the lane's heads
/// Source: the same rules as `adore::select`; slots for the coming tokens as in `ledger_view`.
/// Cost:   reads positions, reads and writes states of observing policies; nothing for policies
///         of one level below their budget.
template <int Neighbours,
          eviction_policy P,
          int Warps,
          class PositionsOf,
          class StatesOf,
          class WeightsOf,
          class SquaredNormOf>
__device__ void decide_lane(ledger_view<P> const& ledger,
                            P const& policy,
                            index_t row,
                            index_t layer,
                            index_t kv_head,
                            step_books const& books,
                            index_t accepted,
                            lane_share const& share,
                            PositionsOf&& positions_of,
                            StatesOf&& states_of,
                            WeightsOf&& weights_of,
                            SquaredNormOf&& squared_norm_of,
                            decision_scratch<Warps>& shared) {
  using slot_state = slot_state_of<P>;
  constexpr bool has_state = !std::is_empty_v<slot_state>;
  constexpr bool one_level = [] {
    if constexpr (ranks_in_levels<P>) return P::priority_levels == 1;
    return false;
  }();
  index_t const lane = ledger.lane(row, layer, kv_head);
  lane_books const& book = books.lane;
  row_books const& sequence = books.row;
  lane_view const view{sequence.next + accepted - 1,
                       book.occupied + accepted,
                       book.budget,
                       ledger.reach == scope::model ? 0 : layer,
                       ledger.reach == scope::kv_head ? kv_head : 0,
                       sequence.seed};
  detail::lane_end<P> const end{.ledger = ledger,
                                .policy = policy,
                                .row = row,
                                .lane = lane,
                                .next = sequence.next,
                                .accepted = accepted,
                                .view = view,
                                .range = candidates_of(policy, view),
                                .lane_state = *ledger.lane_state(lane),
                                .share = share};
  unsigned turn = 0;
  keyed_slot lowest{no_key, -1};
  bool const looks =
      observes_attention<P> || has_state || !one_level || view.occupied > view.budget;
  if (looks) {
    index_t const step = Neighbours * share.threads();
    index_t first = share.first + Neighbours * share.thread();
    neighbours<position_t, Neighbours> coming{};
    neighbours<slot_state, Neighbours> coming_states{};
    auto const ask = [&](index_t slot) {
      if (slot >= share.end) return;
      coming = positions_of(slot);
      if constexpr (has_state) coming_states = states_of(slot);
    };
    ask(first);
#pragma unroll 1
    for (; first < share.end; first += step) {
      neighbours<position_t, Neighbours> const positions = coming;
      neighbours<slot_state, Neighbours> states = coming_states;
      ask(first + step);  // while these are being worked on
      neighbours<float, Neighbours> weights{};
      if constexpr (observes_attention<P>) weights = weights_of(first);
#pragma unroll
      for (index_t i = 0; i < Neighbours; ++i) {
        index_t const s = first + i;
        position_t const p = positions.of[i];
        if (p < 0 || p > view.newest || s >= share.end) continue;
        slot_state& state = states.of[i];
        if constexpr (has_state) {
          bool const fresh = p >= end.next;
          if (!comes_with_state<P> && fresh) state = {};
          if constexpr (scores_keys<P>) {
            if (fresh) policy.score_key(state, squared_norm_of(p - end.next));
          }
          if constexpr (observes_attention<P>) {
            policy.observe(state, shown_slot(policy, p, state), view, weights.of[i], accepted);
          }
          if (!observes_attention<P> && fresh) ledger.states_of(lane)[s] = state;
        }
        keyed_slot const candidate = end.key_of(s, p, state);
        if (candidate.key < lowest.key) lowest = candidate;
      }
      if constexpr (has_state && observes_attention<P>) {
        put_passing_neighbours(ledger.states_of(lane) + first, states);
      }
    }
    lowest = detail::smallest_in_lane(lowest, share, shared, turn);
    if (!relents<P> && !releases_blocks<P> && !marks_tokens<P> && ledger.max_new == 1 &&
        view.occupied - 1 == view.budget && lowest.slot >= 0 &&
        static_cast<std::uint32_t>(lowest.key >> 32U) > detail::high_of_keep_never) {
      // every step of a full lane: the next token takes the victim's slot, the books stay as they
      // are
      if (end.leads()) {
        end.tell(end.position_in(lowest), lowest.slot);
        end.reserve(lowest.slot, end.next + 1);
        ledger.new_slots[lane] = lowest.slot;
      }
      return;
    }
  } else {
    detail::sync_lane(share);
  }
  detail::release_and_reserve(end, book, looks, lowest, shared, turn);
  if constexpr (marks_tokens<P>) detail::mark_lane(end, shared);
}

}  // namespace adore::gpu
