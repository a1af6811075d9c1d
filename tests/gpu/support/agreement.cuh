// SPDX-License-Identifier: Apache-2.0
// Compares what a device ledger keeps with what the host's ledger keeps, given the same weights.
#pragma once

#include <adore/eviction/ledger.hpp>
#include <adore/gpu/device_ledger.cuh>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <vector>

namespace adore::testing {

/// How many kept tokens differ, and whether each difference is a near-tie.
struct agreement {
  int lanes = 0, differences = 0, worse_than_near_ties = 0;
  int other_states = 0;  ///< of slots and lanes, where they were compared
};

inline constexpr double near_tie = 1e-5;  // relative distance of two priorities

/// Priority that a row's books give the token at `position` of a lane, as if it were a candidate.
template <eviction_policy P>
double priority_in(
    P const& policy, ledger<P>& books, index_t lane, position_t position, position_t newest) {
  lane_slots<P> const slots = books.slots_of(lane);
  lane_view const view = books.view_of(lane, newest);
  for (index_t s = 0; s < slots.slots; ++s) {
    if (slots.positions[s] != position) continue;
    return priority_of(policy, slots.view(s), view, slots.state(s), *slots.lane_state);
  }
  return keep_never;
}

/// @param device  books of the row as the device has them after the step, in a host ledger
/// @param host    books of the same row after the same step on the host
template <eviction_policy P>
void compare_kept(ledger<P>& device, ledger<P>& host, index_t row, agreement& result) {
  index_t const first = row * host.lanes_per_row();
  for (index_t lane = first; lane < first + host.lanes_per_row(); ++lane) {
    ++result.lanes;
    auto const ours = device.kept(lane);
    auto const theirs = host.kept(lane);
    if (ours == theirs) continue;
    std::vector<position_t> only_ours, only_theirs;
    std::set_difference(
        ours.begin(), ours.end(), theirs.begin(), theirs.end(), std::back_inserter(only_ours));
    std::set_difference(
        theirs.begin(), theirs.end(), ours.begin(), ours.end(), std::back_inserter(only_theirs));
    result.differences += static_cast<int>(std::max(only_ours.size(), only_theirs.size()));
    if (only_ours.size() != only_theirs.size()) {
      ++result.worse_than_near_ties;
      continue;
    }
    position_t const newest = host.next_position(row) - 1;
    for (std::size_t i = 0; i < only_ours.size(); ++i) {
      double const a = priority_in(host.policy(), device, lane, only_ours[i], newest);
      double const b = priority_in(host.policy(), host, lane, only_theirs[i], newest);
      double const size = std::max({std::abs(a), std::abs(b), 1e-30});
      if (!(std::abs(a - b) <= near_tie * size)) ++result.worse_than_near_ties;
    }
  }
}

/// Compares, bit by bit, what the policy remembers of the tokens that both have, and of the lanes.
template <eviction_policy P>
void compare_states(ledger<P>& device, ledger<P>& host, index_t row, agreement& result) {
  auto const differ = [](auto const& a, auto const& b) {
    return !std::is_empty_v<std::remove_cvref_t<decltype(a)>> &&
           std::memcmp(&a, &b, sizeof(a)) != 0;
  };
  host.for_lanes(row, [&](index_t lane) {
    lane_slots<P> const ours = device.slots_of(lane);
    lane_slots<P> const theirs = host.slots_of(lane);
    if (differ(*ours.lane_state, *theirs.lane_state)) ++result.other_states;
    for (index_t s = 0; s < ours.slots; ++s) {
      if (ours.positions[s] < 0) continue;
      for (index_t t = 0; t < theirs.slots; ++t) {
        if (theirs.positions[t] != ours.positions[s]) continue;
        bool const same =
            !differ(ours.state(s), theirs.state(t)) && ours.rotary[s] == theirs.rotary[t];
        if (!same) ++result.other_states;
      }
    }
  });
}

/// The device's row as a host ledger of the same set-up.
template <eviction_policy P>
ledger<P> on_host(gpu::device_ledger<P> const& books, cudaStream_t stream, index_t row) {
  auto const& view = books.view();
  ledger<P> copy(books.policy(),
                 {view.row_count, view.layers, view.kv_heads, view.slots, 1},
                 view.reach,
                 view.max_new);
  copy.restore(row, books.snapshot(stream, row));
  return copy;
}

}  // namespace adore::testing
