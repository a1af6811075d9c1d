// SPDX-License-Identifier: Apache-2.0
// The stage that chooses victims by looking at the whole lane: any policy, any number of victims.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/rank.hpp"
#include "adore/order_key.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace adore {

/// A token that `select` has freed.
struct victim {
  index_t slot;
  position_t position;
};

namespace detail {

/// Who goes when only protected tokens are left: the newest lose before the first, oldest first.
template <eviction_policy P>
index_t protected_victim(lane_slots<P> const& lane, position_t first) {
  index_t among_newest = -1;
  index_t among_first = -1;
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const position = lane.positions[s];
    if (position < 0) continue;
    index_t& oldest = position >= first ? among_newest : among_first;
    if (oldest < 0 || position < lane.positions[oldest]) oldest = s;
  }
  return among_newest >= 0 ? among_newest : among_first;
}

/// Frees slot `s` in the view; the caller's bookkeeping follows from `victims`.
template <eviction_policy P>
void drop(lane_slots<P> const& lane, lane_view& view, index_t s, std::vector<victim>& victims) {
  victims.push_back({s, lane.positions[s]});
  lane.positions[s] = no_position;
  --view.occupied;
}

/// Releases the `excess` lowest candidates at once.
template <eviction_policy P>
void drop_many(P const& policy,
               lane_slots<P> const& lane,
               lane_view& view,
               candidate_range range,
               index_t excess,
               std::vector<victim>& victims) {
  std::vector<std::pair<std::uint64_t, index_t>> keys;
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const p = lane.positions[s];
    if (p < range.first || p > range.last || p < 0) continue;
    float const priority = priority_of(policy, lane.view(s), view, lane.state(s), *lane.lane_state);
    keys.emplace_back(order_key(priority, p, releases_newest_of_equals<P>), s);
  }
  auto const count = std::min(static_cast<std::ptrdiff_t>(excess), std::ssize(keys));
  std::nth_element(keys.begin(), keys.begin() + count, keys.end());
  std::sort(keys.begin(), keys.begin() + count);
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    drop(lane, view, keys[static_cast<std::size_t>(i)].second, victims);
  }
}

/// Releases whole blocks of `granule` consecutive positions while the lane is over its budget.
///
/// A block competes with the highest priority among its tokens, once all its positions have
/// arrived and none of its tokens is protected.
template <releases_blocks P>
void drop_blocks(P const& policy,
                 lane_slots<P> const& lane,
                 lane_view& view,
                 candidate_range range,
                 std::vector<victim>& victims) {
  struct block {
    index_t number;
    std::int32_t rank;
    bool candidate;
  };
  index_t const granule = policy.granule();
  std::vector<block> blocks;
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const p = lane.positions[s];
    if (p < 0) continue;
    index_t const number = p / granule;
    bool const complete = std::int64_t{number + 1} * granule - 1 <= view.newest;
    std::int32_t const rank =
        ordered_priority(priority_of(policy, lane.view(s), view, lane.state(s), *lane.lane_state));
    bool const candidate = complete && p >= range.first && p <= range.last;
    auto const known = std::find_if(
        blocks.begin(), blocks.end(), [number](block const& b) { return b.number == number; });
    if (known == blocks.end()) {
      blocks.push_back({number, rank, candidate});
    } else {
      known->rank = std::max(known->rank, rank);
      known->candidate = known->candidate && candidate;
    }
  }
  std::erase_if(blocks, [](block const& b) { return !b.candidate; });
  std::sort(blocks.begin(), blocks.end(), [](block const& a, block const& b) {
    if (a.rank != b.rank) return a.rank < b.rank;
    return releases_newest_of_equals<P> ? a.number > b.number : a.number < b.number;
  });
  for (block const& lowest : blocks) {
    if (view.occupied <= view.budget && lowest.rank != ordered_keep_never) continue;
    for (index_t s = 0; s < lane.slots; ++s) {
      position_t const p = lane.positions[s];
      if (p >= 0 && p / granule == lowest.number) drop(lane, view, s, victims);
    }
  }
}

/// Below the budget a NaN stays, but it must not hide what is never kept.
template <eviction_policy P>
void drop_never_kept(P const& policy,
                     lane_slots<P> const& lane,
                     lane_view& view,
                     candidate_range range,
                     std::vector<victim>& victims) {
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const p = lane.positions[s];
    if (p < range.first || p > range.last || p < 0) continue;
    float const priority = priority_of(policy, lane.view(s), view, lane.state(s), *lane.lane_state);
    if (ordered_priority(priority) == ordered_keep_never) drop(lane, view, s, victims);
  }
}

/// Lets the policy change its lane state until some candidate is worth less to it; a change after
/// which all are worth as much as before is taken back.
template <relents P>
lowest_slot relent(P const& policy,
                   lane_slots<P> const& lane,
                   lane_view const& view,
                   candidate_range range,
                   lowest_slot lowest) {
  lane_state_of<P> const before = *lane.lane_state;
  lowest_slot now = lowest;
  while (now.rank == lowest.rank) {
    float const priority =
        priority_of(policy, lane.view(now.slot), view, lane.state(now.slot), *lane.lane_state);
    if (!policy.relent(*lane.lane_state, view, priority)) {
      *lane.lane_state = before;
      return lowest;
    }
    now = rank(policy, lane, view, range);
  }
  return now;
}

}  // namespace detail

/// Chooses and frees victims until the lane holds at most its budget and no `keep_never`.
///
/// @param lane     in/out: freed slots get `no_position`
/// @param view     in/out: `occupied` counts down
/// @param lowest   what `rank` or `observe_and_rank` found for this lane
/// @param victims  out: the freed tokens in the order of their release, appended
/// Source: policies.md 0.2 (event 6) and 0.4; protection as in design rule "protection is not a
///         priority": when only protected tokens are left, the newest lose before the first.
/// Cost:   nothing more than `lowest` for no or one victim; otherwise O(slots log slots).
template <eviction_policy P>
void select(P const& policy,
            lane_slots<P> const& lane,
            lane_view& view,
            lowest_slot lowest,
            std::vector<victim>& victims) {
  candidate_range const range = candidates_of(policy, view);
  if constexpr (releases_blocks<P>) {
    if (policy.granule() > 1) {
      detail::drop_blocks(policy, lane, view, range, victims);
      if (view.occupied <= view.budget) return;
      lowest = rank(policy, lane, view, range);
    }
  }
  constexpr index_t few = 4;
  if (!relents<P> && view.budget != unbounded && view.occupied - view.budget > few) {
    detail::drop_many(policy, lane, view, range, view.occupied - view.budget, victims);
    lowest = rank(policy, lane, view, range);
  }
  for (;;) {
    bool const over = view.occupied > view.budget;
    if (lowest.slot < 0) {
      if (!over) return;
      detail::drop(lane, view, detail::protected_victim(lane, range.first), victims);
      continue;  // still none but protected ones
    }
    if (!over && lowest.rank > ordered_keep_never) return;
    if (!over && lowest.rank < ordered_keep_never) {
      detail::drop_never_kept(policy, lane, view, range, victims);
      return;
    }
    if constexpr (relents<P>) {
      if (over) lowest = detail::relent(policy, lane, view, range, lowest);
    }
    detail::drop(lane, view, lowest.slot, victims);
    if (view.occupied <= view.budget && lowest.rank > ordered_keep_never) return;
    lowest = rank(policy, lane, view, range);
  }
}

}  // namespace adore
