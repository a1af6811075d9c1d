// SPDX-License-Identifier: Apache-2.0
// Releases from a lane until it is within its budget, and reserves the slots of the tokens to come.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_blocks.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/order_key.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {
namespace detail {

/// The priority that `order_key` was given; NaN comes back as `keep_never`.
__device__ inline float priority_of_key(std::uint64_t key) {
  auto const ordered =
      static_cast<std::int32_t>(static_cast<std::uint32_t>(key >> 32U) ^ 0x80000000U);
  return ordered < ordered_keep_never ? keep_never : priority_of_ordered(ordered);
}

inline constexpr std::uint32_t high_of_keep_never =
    static_cast<std::uint32_t>(ordered_keep_never) ^ 0x80000000U;

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
    unsigned long long const before = atomicAdd(ledger.released.written, 1ULL);
    ledger.released.entries[before % ledger.released.capacity] = {
        before + 1, row, lane, p, next + accepted - 1};
  }
};

/// The first slots that become free in a step, as the leader knows them: those that are set aside
/// anew.
class freed_slots {
 public:
  __device__ __forceinline__ void add(index_t slot) {
#pragma unroll
    for (index_t i = 0; i < most_new_tokens; ++i) {  // keeps them in registers
      if (i == count_) slots_[i] = slot;
    }
    ++count_;
  }
  __device__ __forceinline__ index_t slot(index_t number) const {
    index_t slot = -1;
#pragma unroll
    for (index_t i = 0; i < most_new_tokens; ++i) {
      if (i == number) slot = slots_[i];
    }
    return slot;
  }
  /// All threads know it.
  __device__ __forceinline__ index_t count() const {
    return count_;
  }

 private:
  index_t slots_[most_new_tokens];
  index_t count_ = 0;
};

/// Finds the victims of a lane until it is within its budget, and calls `take(which, position)` for
/// each, in the order in which they go. All threads of the lane call it together, and so `take`. A
/// victim's position becomes `no_position`, so that who looks again does not meet it, but for the
/// last one's.
///
/// @param lowest  the lane's smallest key
/// @param most    victims to take
/// @param turn    of `shared`, see `smallest_in_lane`
/// Result: the last victim; slot -1: there was none. `end.view` counts the victims out, and
/// `end.lane_state` is what the policy made of it.
template <eviction_policy P, int Warps, class Take>
__device__ __forceinline__ keyed_slot for_victims(lane_end<P>& end,
                                                  keyed_slot lowest,
                                                  decision_scratch<Warps>& shared,
                                                  unsigned& turn,
                                                  index_t most,
                                                  Take&& take) {
  lane_view& view = end.view;
  lane_share const& share = end.share;
  position_t* const positions = end.positions();
  index_t const threads = share.threads();
  // each thread looks at the same slots every time, so that it sees what it wrote
  auto const lowest_of = [&](auto&& visit) {
    keyed_slot best{no_key, -1};
    for (index_t s = share.first + share.thread(); s < share.end; s += threads) {
      position_t const p = positions[s];
      if (p < 0 || p > view.newest) continue;
      keyed_slot const candidate = visit(s, p);
      if (candidate.key < best.key) best = candidate;
    }
    return smallest_in_lane(best, share, shared, turn);
  };
  auto const lowest_again = [&] {
    return lowest_of([&](index_t s, position_t p) { return end.key_of(s, p, end.state_in(s)); });
  };
  keyed_slot last{no_key, -1};
  auto const free_last = [&] {
    if (last.slot >= share.first && last.slot < share.end &&
        (last.slot - share.first) % threads == share.thread()) {
      positions[last.slot] = no_position;
    }
  };
  index_t taken = 0;
  auto const release = [&](keyed_slot gone, position_t p) {
    last = gone;
    --view.occupied;
    ++taken;
    take(gone, p);
  };
  if constexpr (releases_blocks<P>) {
    // what blocks do not settle goes token by token
    index_t const granule = end.policy.granule();
    bool const may = view.occupied > view.budget ||
                     static_cast<std::uint32_t>(lowest.key >> 32U) <= high_of_keep_never;
    if (granule > 1 && may) {
      auto const key_of = [&](index_t s, position_t p) {
        return end.key_of(s, p, end.state_in(s));
      };
      for (;;) {
        index_t const gone =
            lowest_block<releases_newest_of_equals<P>>(
                granule, view.newest, view.occupied > view.budget, key_of, lowest_of)
                .number;
        if (gone < 0) break;
        for (;;) {
          keyed_slot const token = lowest_of([&](index_t s, position_t p) -> keyed_slot {
            if (p / granule != gone) return {no_key, -1};
            return {static_cast<std::uint64_t>(p), s};
          });
          if (token.slot < 0) break;
          release(token, static_cast<position_t>(token.key));
          if (taken == most) return last;
          free_last();
        }
      }
      lowest = view.occupied > view.budget ? lowest_again() : keyed_slot{no_key, -1};
    }
  }
  for (;;) {
    bool const over = view.occupied > view.budget;
    if (lowest.slot < 0) {
      if (!over) break;
      // only protected tokens are left: the newest lose before the first, oldest first
      keyed_slot const oldest = lowest_of([&](index_t s, position_t p) -> keyed_slot {
        std::uint64_t const first_ones_last = p < end.range.first ? 1U : 0U;
        return {(first_ones_last << 32U) | static_cast<std::uint32_t>(p), s};
      });
      if (oldest.slot < 0) break;  // the lane is full of tokens that found no slot
      release(oldest, static_cast<position_t>(static_cast<std::uint32_t>(oldest.key)));
      if (view.occupied <= view.budget || taken == most) break;
      free_last();
      continue;
    }
    auto const rank = static_cast<std::uint32_t>(lowest.key >> 32U);
    if (!over && rank > high_of_keep_never) break;
    if (!over && rank < high_of_keep_never) {
      // a NaN stays below the budget, but it must not hide what is never kept
      lowest = lowest_of([&](index_t s, position_t p) {
        keyed_slot const candidate = end.key_of(s, p, end.state_in(s));
        bool const never = static_cast<std::uint32_t>(candidate.key >> 32U) == high_of_keep_never;
        return never ? candidate : keyed_slot{no_key, -1};
      });
      if (lowest.slot < 0) break;
    }
    if constexpr (relents<P>) {
      // a change after which all candidates are worth as much as before is taken back
      if (over) {
        lane_state_of<P> const before = end.lane_state;
        keyed_slot now = lowest;
        while (now.key >> 32U == lowest.key >> 32U) {
          if (!end.policy.relent(end.lane_state, view, priority_of_key(now.key))) {
            end.lane_state = before;
            now = lowest;
            break;
          }
          now = lowest_again();
        }
        lowest = now;
      }
    }
    release(lowest, end.position_in(lowest));
    bool const done = view.occupied <= view.budget &&
                      static_cast<std::uint32_t>(lowest.key >> 32U) > high_of_keep_never;
    if (done || taken == most) break;
    free_last();
    lowest = lowest_again();
  }
  return last;
}

/// Sets slots aside for the positions next + max_new .. next + max_new + accepted - 1: those just
/// freed, then older holes, then such as were never used; and closes the books. All threads of the
/// lane call it together.
///
/// @param book  before the step
template <eviction_policy P, int Warps>
__device__ __forceinline__ void reserve_slots(lane_end<P> const& end,
                                              lane_books const& book,
                                              freed_slots const& freed,
                                              decision_scratch<Warps>& shared,
                                              unsigned& turn) {
  ledger_view<P> const& ledger = end.ledger;
  lane_share const& share = end.share;
  position_t const* const positions = end.positions();
  index_t extent = book.extent;
  index_t const end_of_tokens = ledger.slots - ledger.guests;
  index_t holes = min(extent, end_of_tokens) - book.occupied - ledger.max_new;
  for (index_t i = 0; i < end.accepted; ++i) {
    index_t slot = -1;
    if (i < freed.count()) {
      slot = freed.slot(i);
    } else if (holes > 0) {
      keyed_slot hole{no_key, -1};
      for (index_t s = share.first + share.thread(); s < share.end; s += share.threads()) {
        if (hole.slot < 0 && __ldcg(positions + s) == no_position) {
          hole = {static_cast<std::uint64_t>(s), s};
        }
      }
      slot = smallest_in_lane(hole, share, shared, turn).slot;
      --holes;
    } else if (extent < end_of_tokens) {
      slot = extent++;
    }
    if (end.leads()) {
      position_t const coming = end.next + ledger.max_new + i;
      ledger.new_slots[end.lane * ledger.max_new + coming % ledger.max_new] = slot;
      if (slot >= 0) {
        end.reserve(slot, coming);
      } else {
        atomicAdd(ledger.lanes_without_room, 1U);
      }
    }
    if (holes > 0) sync_lane(share);  // the next search must see this reservation
  }
  if (end.leads()) {
    ledger.lanes[end.lane] = {end.view.occupied, extent, book.budget};
    if constexpr (!std::is_empty_v<lane_state_of<P>>) {
      *ledger.lane_state(end.lane) = end.lane_state;
    }
  }
}

/// The general end of a lane's step; all threads of the lane call it together. Out of line, since
/// most steps of a full lane release the smallest key and are done.
///
/// @param looked  whether there may be something to release: `lowest` was looked for
template <eviction_policy P, int Warps>
static __device__ __noinline__ void release_and_reserve(lane_end<P> end,
                                                        lane_books book,
                                                        bool looked,
                                                        keyed_slot lowest,
                                                        decision_scratch<Warps>& shared,
                                                        unsigned turn) {
  freed_slots freed;
  if (looked) {
    keyed_slot const last =
        for_victims(end, lowest, shared, turn, unbounded, [&](keyed_slot gone, position_t p) {
          freed.add(gone.slot);
          if (end.leads()) end.tell(p, gone.slot);
        });
    if (end.leads() && last.slot >= 0) end.positions()[last.slot] = no_position;
    if (freed.count() > 1) sync_lane(end.share);  // all are free before the leader reserves them
  }
  reserve_slots(end, book, freed, shared, turn);
}

}  // namespace detail
}  // namespace adore::gpu
