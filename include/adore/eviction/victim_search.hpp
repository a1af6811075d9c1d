// SPDX-License-Identifier: Apache-2.0
// How the books find a lane's victims: from a queue where priorities never change, else by a pass
// over the lane.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/mark.hpp"
#include "adore/eviction/rank.hpp"
#include "adore/eviction/select.hpp"
#include "adore/eviction/victim_queue.hpp"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <vector>

namespace adore {

/// Victims come from a queue; other lanes are looked at slot by slot.
template <class P>
concept queues_victims =
    eviction_policy<P> && ranks_once<P> && !releases_blocks<P> && !observes_attention<P>;

/// A pass over the lane, which remembers nothing from step to step.
///
/// Both kinds report each victim by `gone(victim)` when its slot holds `no_position` already.
template <eviction_policy P>
class victim_search {
 public:
  victim_search(index_t /*lanes*/, index_t /*slots*/) {}
  void clear(index_t) noexcept {}
  void copy(index_t, index_t) noexcept {}
  void arrive(P const&, index_t, lane_slots<P> const&, index_t, lane_view const&) noexcept {}
  void rebuild(P const&, index_t, lane_slots<P> const&, lane_view const&) noexcept {}

  /// Brings the lane to view.budget.
  template <class Gone>
  void select(
      P const& policy, index_t, lane_slots<P> const& slots, lane_view const& view, Gone&& gone) {
    release(policy, slots, view, rank(policy, slots, view, candidates_of(policy, view)), gone);
  }
  /// The same after the policy has observed; see `observe_and_rank`.
  template <class Gone>
  void observe_and_select(P const& policy,
                          lane_slots<P> const& slots,
                          lane_view const& view,
                          float const* weights,
                          index_t queries,
                          Gone&& gone) requires observes_attention<P> {
    candidate_range const range = candidates_of(policy, view);
    release(
        policy, slots, view, observe_and_rank(policy, slots, view, range, weights, queries), gone);
  }

 private:
  template <class Gone>
  void release(P const& policy,
               lane_slots<P> const& slots,
               lane_view const& view,
               lowest_slot lowest,
               Gone&& gone) {
    bool const may_release = view.occupied > view.budget || lowest.rank <= ordered_keep_never;
    bool const just_one =
        view.occupied - 1 == view.budget && lowest.slot >= 0 && lowest.rank > ordered_keep_never;
    [[maybe_unused]] index_t left = view.occupied;
    if (!relents<P> && !releases_blocks<P> && just_one) {  // every step of a full lane
      victim const only{lowest.slot, slots.positions[lowest.slot]};
      slots.positions[lowest.slot] = no_position;
      --left;
      gone(only);
    } else if (may_release) {
      victims_.clear();
      lane_view then = view;
      adore::select(policy, slots, then, lowest, victims_);
      left = then.occupied;
      for (victim const& one : victims_) gone(one);
    }
    if constexpr (marks_tokens<P>) {
      lane_view then = view;
      then.occupied = left;
      mark(policy, slots, then);
    }
  }

  std::vector<victim> victims_;
};

template <queues_victims P>
class victim_search<P> {
 public:
  victim_search(index_t lanes, index_t slots) : queue_(lanes, slots) {}
  void clear(index_t lane) { queue_.clear(lane); }
  void copy(index_t from, index_t to) { queue_.copy(from, to); }

  /// A token has come; tokens must come in ascending position.
  void arrive(P const& policy,
              index_t lane,
              lane_slots<P> const& slots,
              index_t slot,
              lane_view const& view) {
    if (slots.positions[slot] >= candidates_of(policy, view).first) queue_.arrive(lane, slot);
  }
  /// Orders the candidates anew from what the lane holds: its tokens have moved or been loaded, or
  /// its budget, on which protection may depend, has changed.
  void rebuild(P const& policy, index_t lane, lane_slots<P> const& slots, lane_view const& view) {
    queue_.clear(lane);
    std::vector<index_t> order;
    for (index_t s = 0; s < slots.slots; ++s) {
      if (slots.positions[s] >= 0) order.push_back(s);
    }
    std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
      return slots.positions[a] < slots.positions[b];
    });
    for (index_t const s : order) arrive(policy, lane, slots, s, view);
  }
  template <class Gone>
  void select(P const& policy,
              index_t lane,
              lane_slots<P> const& slots,
              lane_view const& view,
              Gone&& gone) {
    auto const give_up = [&](index_t slot) {
      if (slot < 0) slot = detail::protected_victim(slots, last_position);
      victim const one{slot, slots.positions[slot]};
      slots.positions[slot] = no_position;
      gone(one);
    };
    position_t const last = candidates_of(policy, view).last;
    queue_.select(policy, lane, slots, view, last, view.occupied - view.budget, give_up);
    if constexpr (marks_tokens<P>) mark(policy, slots, view);
  }

 private:
  victim_queue<P> queue_;
};

}  // namespace adore
