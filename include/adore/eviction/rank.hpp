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
  // Only blocks that hold the minimum are looked at again, for the age of its equals. Their minima
  // are compared first and a block's ranks are kept: "lower than all before?" is a coin toss that
  // the processor would often guess wrong, and each such guess costs as much as a block.
  constexpr index_t block = 64;
  constexpr index_t blocks = 16;
  constexpr std::int32_t not_a_candidate = std::numeric_limits<std::int32_t>::max();
  constexpr std::uint32_t infinity = 0x7F800000U;
  [[maybe_unused]] index_t const queries = FixedQueries > 0 ? FixedQueries : queries_given;
  // first <= position < first + count as one signed comparison, which is the one that AVX2 has
  auto const shift = static_cast<std::uint32_t>(range.first) + 0x80000000U;
  auto const end = static_cast<std::int32_t>(
      (range.last < range.first ? 0U : static_cast<std::uint32_t>(range.last - range.first) + 1U) +
      0x80000000U);
  position_t const* __restrict positions = lane.positions;
  position_t const* __restrict rotary = lane.rotary;
  slot_state_of<P>* __restrict states = lane.states;
  lane_state_of<P> const lane_state = *lane.lane_state;
  // 0 for a candidate, else not_a_candidate
  auto const hidden = [&](index_t s) {
    auto const shifted = static_cast<std::int32_t>(static_cast<std::uint32_t>(positions[s]) - shift);
    return shifted < end ? 0 : not_a_candidate;
  };

  // The bits of a float >= 0 are its rank. That holds for a whole block, and saves the cases of
  // `ordered_priority`, if the largest of all bits as unsigned numbers is that of a float >= 0 too.
  auto const rank_block = [&](index_t begin, index_t size, std::int32_t* __restrict ranks) {
    std::int32_t best = not_a_candidate;
    std::uint32_t largest = 0;
    for (index_t i = 0; i < size; ++i) {
      index_t const s = begin + i;
      slot_view const slot{positions[s], rotary[s]};
      auto& state = states[std::is_empty_v<slot_state_of<P>> ? 0 : s];
      if constexpr (Observes) policy.observe(state, slot, view, weights[s], queries);
      auto const bits = __builtin_bit_cast(
          std::uint32_t, priority_of(policy, slot, view, state, lane_state));
      largest = bits > largest ? bits : largest;
      std::int32_t const rank = static_cast<std::int32_t>(bits) | hidden(s);
      ranks[i] = rank;
      best = rank < best ? rank : best;
    }
    if (largest <= infinity) return best;
    best = not_a_candidate;
    for (index_t i = 0; i < size; ++i) {
      std::int32_t const rank = ordered_priority(__builtin_bit_cast(float, ranks[i]));
      ranks[i] = hidden(begin + i) == 0 ? rank : not_a_candidate;
    }
    for (index_t i = 0; i < size; ++i) {
      best = ranks[i] < best ? ranks[i] : best;
    }
    return best;
  };

  lowest_slot lowest;
  std::uint32_t lowest_age = std::numeric_limits<std::uint32_t>::max();
  alignas(64) std::int32_t ranks[blocks * block];
  std::int32_t best_of[blocks];
  for (index_t chunk = 0; chunk < lane.slots; chunk += blocks * block) {
    index_t const size = std::min(blocks * block, lane.slots - chunk);
    std::int32_t best = not_a_candidate;
    for (index_t b = 0; b * block < size; ++b) {
      index_t const begin = b * block;
      // a constant size is worth a call of its own
      best_of[b] = size - begin >= block
                       ? rank_block(chunk + begin, block, ranks + begin)
                       : rank_block(chunk + begin, size - begin, ranks + begin);
      best = std::min(best, best_of[b]);
    }
    if (best == not_a_candidate || best > lowest.rank) continue;
    if (best < lowest.rank) lowest_age = std::numeric_limits<std::uint32_t>::max();
    lowest.rank = best;
    for (index_t b = 0; b * block < size; ++b) {
      if (best_of[b] != best) continue;
      for (index_t i = b * block; i < std::min(size, (b + 1) * block); ++i) {
        if (ranks[i] != best) continue;
        auto const position = static_cast<std::uint32_t>(positions[chunk + i]);
        std::uint32_t const age = releases_newest_of_equals<P> ? ~position : position;
        if (age < lowest_age) {
          lowest_age = age;
          lowest.slot = chunk + i;
        }
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
