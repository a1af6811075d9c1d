// SPDX-License-Identifier: Apache-2.0
// Which tokens a lane gives up until it is within its budget.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_blocks.cuh"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// The priority that `order_key` was given; NaN comes back as `keep_never`.
__device__ inline float priority_of_key(std::uint64_t key) {
  auto const ordered =
      static_cast<std::int32_t>(static_cast<std::uint32_t>(key >> 32U) ^ 0x80000000U);
  return ordered < ordered_keep_never ? keep_never : priority_of_ordered(ordered);
}

inline constexpr std::uint32_t high_of_keep_never =
    static_cast<std::uint32_t>(ordered_keep_never) ^ 0x80000000U;

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

}  // namespace adore::gpu::detail
