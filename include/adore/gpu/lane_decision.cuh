// SPDX-License-Identifier: Apache-2.0
// The end of a lane's step inside a kernel: the policy observes, victims are released, and slots
// are reserved for the tokens to come.
#pragma once

#include "adore/checked_policy.hpp"
#include "adore/concepts.hpp"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/lane_marks.cuh"
#include "adore/gpu/lane_release.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/lane_victims.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// What a policy must be, and leave alone, to be decided here: one sentence for each.
template <class P>
struct checked_device_policy : checked_policy<P> {
  static_assert(!recalls_tokens<P>, "adore::gpu: this cache does not recall tokens");
  static_assert(std::is_empty_v<slot_state_of<P>> || sizeof(slot_state_of<P>) % 4 == 0,
                "adore::gpu: 'slot_state' of a policy must have a multiple of 4 bytes");
};

namespace detail {

/// What a pass over the slots of a lane does: the policy learns of the step, which changes states;
/// candidates are ranked.
enum class pass_over_slots { learns, ranks, learns_and_ranks };

/// A pass over this thread's slots; other parameters as in `decide_lane`.
///
/// Result: the smallest key, if candidates are ranked.
template <int Neighbours,
          pass_over_slots Does,
          eviction_policy P,
          class PositionsOf,
          class StatesOf,
          class WeightsOf,
          class SquaredNormOf>
__device__ __forceinline__ keyed_slot pass_over(lane_end<P> const& end,
                                                PositionsOf&& positions_of,
                                                StatesOf&& states_of,
                                                WeightsOf&& weights_of,
                                                SquaredNormOf&& squared_norm_of) {
  using slot_state = slot_state_of<P>;
  constexpr bool has_state = !std::is_empty_v<slot_state>;
  constexpr bool learns = Does != pass_over_slots::ranks;
  lane_share const& share = end.share;
  slot_state* const stored = end.ledger.states_of(end.lane);
  keyed_slot lowest{no_key, -1};
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
    if constexpr (observes_attention<P> && learns) weights = weights_of(first);
#pragma unroll
    for (index_t i = 0; i < Neighbours; ++i) {
      index_t const s = first + i;
      position_t const p = positions.of[i];
      if (p < 0 || p > end.view.newest || s >= share.end) continue;
      slot_state& state = states.of[i];
      if constexpr (has_state && learns) {
        bool const fresh = p >= end.next;
        if (!comes_with_state<P> && fresh) state = {};
        if constexpr (scores_keys<P>) {
          if (fresh) end.policy.score_key(state, squared_norm_of(p - end.next));
        }
        if constexpr (observes_attention<P>) {
          end.policy.observe(
              state, shown_slot(end.policy, p, state), end.view, weights.of[i], end.accepted);
        }
        if (!observes_attention<P> && fresh) stored[s] = state;
      }
      if constexpr (Does != pass_over_slots::learns) {
        keyed_slot const candidate = end.key_of(s, p, state);
        if (candidate.key < lowest.key) lowest = candidate;
      }
    }
    if constexpr (has_state && observes_attention<P> && learns) {
      put_passing_neighbours(stored + first, states);
    }
  }
  return lowest;
}

/// Whether a decision has to look at the slots; policies of one level below their budget have not.
template <eviction_policy P>
__device__ __forceinline__ bool looks_at_slots(lane_view const& view) {
  constexpr bool one_level = [] {
    if constexpr (ranks_in_levels<P>) return P::priority_levels == 1;
    return false;
  }();
  return observes_attention<P> || !std::is_empty_v<slot_state_of<P>> || !one_level ||
         view.occupied > view.budget;
}

}  // namespace detail

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
  detail::lane_end<P> const end =
      detail::lane_end_of(ledger, policy, row, layer, kv_head, books, accepted, share);
  lane_view const& view = end.view;
  unsigned turn = 0;
  keyed_slot lowest{no_key, -1};
  bool const looks = detail::looks_at_slots<P>(view);
  if (looks) {
    lowest = detail::pass_over<Neighbours, detail::pass_over_slots::learns_and_ranks>(
        end, positions_of, states_of, weights_of, squared_norm_of);
    lowest = detail::smallest_in_lane(lowest, share, shared, turn);
    if (!relents<P> && !releases_blocks<P> && !marks_tokens<P> && ledger.max_new == 1 &&
        view.occupied - 1 == view.budget && lowest.slot >= 0 &&
        static_cast<std::uint32_t>(lowest.key >> 32U) > detail::high_of_keep_never) {
      // every step of a full lane: the next token takes the victim's slot, the books stay as they
      // are
      if (end.leads()) {
        end.tell(end.position_in(lowest), lowest.slot);
        end.reserve(lowest.slot, end.next + 1);
        ledger.new_slots[end.lane] = lowest.slot;
      }
      return;
    }
  } else {
    detail::sync_lane(share);
  }
  detail::release_and_reserve(end, books.lane, looks, lowest, shared, turn);
  if constexpr (marks_tokens<P>) detail::mark_lane(end, shared);
}

namespace detail {

/// Lists the victims of a lane, and leaves it as it is, but for a lane state in which the policy
/// keeps what it relented. All threads that share the lane call it.
template <int Neighbours, eviction_policy P, int Warps, class PositionsOf, class StatesOf>
__device__ void select_in_lane(lane_end<P> end,
                               PositionsOf&& positions_of,
                               StatesOf&& states_of,
                               victims_view const& victims,
                               decision_scratch<Warps>& shared) {
  departure* const list = victims.tokens + std::int64_t{end.lane} * victims.most;
  index_t count = 0;
  if (looks_at_slots<P>(end.view)) {
    auto const nothing = [](index_t) { return 0.0F; };
    unsigned turn = 0;
    keyed_slot const lowest = pass_over<Neighbours, pass_over_slots::ranks>(
        end, positions_of, states_of, nothing, nothing);
    for_victims(end,
                smallest_in_lane(lowest, end.share, shared, turn),
                shared,
                turn,
                victims.most,
                [&](keyed_slot gone, position_t p) {
                  if (end.leads()) list[count] = {p, gone.slot};
                  ++count;
                });
  }
  if (!end.leads()) return;
  for (index_t i = 0; i < count; ++i) end.positions()[list[i].slot] = list[i].position;
  victims.counts[end.lane] = count;
  if constexpr (relents<P>) *end.ledger.lane_state(end.lane) = end.lane_state;
}

/// Releases the listed tokens of a lane and reserves the slots of the tokens to come. All threads
/// that share the lane call it.
template <eviction_policy P, int Warps>
__device__ void release_from_lane(lane_end<P> end,
                                  lane_books const& book,
                                  victims_view const& victims,
                                  decision_scratch<Warps>& shared) {
  departure const* const list = victims.tokens + std::int64_t{end.lane} * victims.most;
  index_t const count = victims.counts[end.lane];
  freed_slots freed;
  for (index_t i = 0; i < count; ++i) {
    departure const gone = list[i];
    freed.add(gone.slot);
    --end.view.occupied;
    if (!end.leads()) continue;
    end.tell(gone.position, gone.slot);
    end.positions()[gone.slot] = no_position;
  }
  if (count > 1) sync_lane(end.share);  // all are free before the leader reserves them
  unsigned turn = 0;
  reserve_slots(end, book, freed, shared, turn);
  if constexpr (marks_tokens<P>) mark_lane(end, shared);
}

}  // namespace detail
}  // namespace adore::gpu
