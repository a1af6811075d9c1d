// SPDX-License-Identifier: Apache-2.0
// The stage that looks at every slot of a lane: lets the policy observe its weights and finds the
// slot of the lowest order among the candidates, in one pass.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace adore {

/// The slot that goes first, -1 if a lane has no candidate, and its ordered priority.
struct lowest_slot {
  index_t slot = -1;
  std::int32_t rank = std::numeric_limits<std::int32_t>::max();
};

namespace detail {

/// One pass over a lane. `Observes`: the policy is given the weights first. `FixedQueries`: their
/// number where it is known to the compiler, else 0.
///
/// Written for the vectoriser: the loop over a block has no branch, no call and no aliasing; what
/// is loop-invariant is copied to locals, since a store into the states might else change it.
template <bool Observes, index_t FixedQueries, eviction_policy P>
lowest_slot rank_pass(P const policy,
                      lane_slots<P> const lane,
                      lane_view const view,
                      candidate_range const range,
                      float const* __restrict weights,
                      index_t const queries_given) {
  // Only the block that holds the minimum is looked at again, for the age of its equals.
  constexpr index_t block = 64;
  constexpr std::int32_t not_a_candidate = std::numeric_limits<std::int32_t>::max();
  [[maybe_unused]] index_t const queries = FixedQueries > 0 ? FixedQueries : queries_given;
  auto const first = static_cast<std::uint32_t>(range.first);
  std::uint32_t const count =
      range.last < range.first ? 0U : static_cast<std::uint32_t>(range.last) - first + 1U;
  position_t const* __restrict positions = lane.positions;
  position_t const* __restrict rotary = lane.rotary;
  slot_state_of<P>* __restrict states = lane.states;
  lane_state_of<P> const lane_state = *lane.lane_state;
  alignas(64) std::int32_t ranks[block];

  auto const rank_slot = [&](index_t begin, index_t i) {
    index_t const s = begin + i;
    slot_view const slot{positions[s], rotary[s]};
    auto& state = states[std::is_empty_v<slot_state_of<P>> ? 0 : s];
    if constexpr (Observes) policy.observe(state, slot, view, weights[s], queries);
    std::int32_t const rank = ordered_priority(priority_of(policy, slot, view, state, lane_state));
    bool const candidate = static_cast<std::uint32_t>(slot.position) - first < count;
    ranks[i] = candidate ? rank : not_a_candidate;
  };

  lowest_slot lowest;
  std::uint32_t lowest_age = std::numeric_limits<std::uint32_t>::max();
  for (index_t begin = 0; begin < lane.slots; begin += block) {
    index_t const size = std::min(block, lane.slots - begin);
    std::int32_t best = not_a_candidate;
    if (size == block) {  // a constant trip count
      for (index_t i = 0; i < block; ++i) rank_slot(begin, i);
      for (index_t i = 0; i < block; ++i) best = ranks[i] < best ? ranks[i] : best;
    } else {
      for (index_t i = 0; i < size; ++i) rank_slot(begin, i);
      for (index_t i = 0; i < size; ++i) best = ranks[i] < best ? ranks[i] : best;
    }
    if (best == not_a_candidate || best > lowest.rank) continue;
    if (best < lowest.rank) lowest_age = std::numeric_limits<std::uint32_t>::max();
    lowest.rank = best;
    for (index_t i = 0; i < size; ++i) {
      if (ranks[i] != best) continue;
      auto const position = static_cast<std::uint32_t>(positions[begin + i]);
      std::uint32_t const age = releases_newest_of_equals<P> ? ~position : position;
      if (age < lowest_age) {
        lowest_age = age;
        lowest.slot = begin + i;
      }
    }
  }
  return lowest;
}

}  // namespace detail

/// Finds the candidate of the lowest priority, the oldest among equals.
///
/// Cost: one pass over the slots.
template <eviction_policy P>
lowest_slot rank(P const& policy,
                 lane_slots<P> const& lane,
                 lane_view const& view,
                 candidate_range range) {
  return detail::rank_pass<false, 1>(policy, lane, view, range, nullptr, 0);
}

/// The same after the policy has observed this call's attention.
///
/// @param weights  [slot], sum over the call's queries of query_weight x probability
/// @param queries  number of queries in the call, >= 1
template <observes_attention P>
lowest_slot observe_and_rank(P const& policy,
                             lane_slots<P> const& lane,
                             lane_view const& view,
                             candidate_range range,
                             float const* weights,
                             index_t queries) {
  // one query per step is the common case, and a constant lets `factor^queries` fold away
  return queries == 1 ? detail::rank_pass<true, 1>(policy, lane, view, range, weights, 1)
                      : detail::rank_pass<true, 0>(policy, lane, view, range, weights, queries);
}

}  // namespace adore
