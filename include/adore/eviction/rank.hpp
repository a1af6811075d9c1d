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

inline constexpr std::int32_t no_candidate = std::numeric_limits<std::int32_t>::max();
inline constexpr std::uint32_t all_ones = ~std::uint32_t{0};

/// first <= position <= last as one signed comparison, the only one that AVX2 has.
struct candidate_test {
  std::uint32_t shift;
  std::int32_t last;

  explicit candidate_test(candidate_range range) {
    // in an empty range, first = last = a position that no token has
    if (range.last < range.first) range = {no_candidate, no_candidate};
    shift = 0x80000000U - static_cast<std::uint32_t>(range.first);
    last = static_cast<std::int32_t>(static_cast<std::uint32_t>(range.last) + shift);
  }
  /// All ones unless a token at this position is a candidate.
  std::uint32_t hides(position_t position) const {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(position) + shift) > last ? all_ones
                                                                                          : 0U;
  }
};

/// Turns the bits of priorities into ranks, whatever their sign. Never inlined: the compiler would
/// share its comparisons with those of `rank_block`, and spill them all.
[[gnu::noinline]] inline std::int32_t rank_exactly(position_t const* __restrict positions,
                                                   candidate_test const test,
                                                   index_t const size,
                                                   std::uint32_t* __restrict ranks) {
  for (index_t i = 0; i < size; ++i) {
    std::int32_t const ordered = ordered_priority(priority_of_bits(ranks[i]));
    std::int32_t const rank = test.hides(positions[i]) == 0U ? ordered : no_candidate;
    ranks[i] = static_cast<std::uint32_t>(rank);
  }
  std::int32_t lowest = no_candidate;
  for (index_t i = 0; i < size; ++i) {
    auto const rank = static_cast<std::int32_t>(ranks[i]);
    lowest = rank < lowest ? rank : lowest;
  }
  return lowest;
}

/// Shows slots [0, size) their weights if the policy `Observes`, fills their ranks and returns the
/// lowest.
///
/// Written for the vectoriser: no branch, no call, no aliasing in the loops, what is loop-invariant
/// is a local value, and where a choice becomes a minimum it is made by `|` with all ones, since
/// compilers turn a `?:` there into branches.
///
/// The bits of a float >= 0 are its rank, and a free or protected slot has all ones; only a block
/// whose largest bits are not those of a float >= 0 needs `ordered_priority`.
template <bool Observes, eviction_policy P>
std::int32_t rank_block(P const policy,
                        position_t const* __restrict positions,
                        position_t const* __restrict rotary,
                        slot_state_of<P>* __restrict states,
                        lane_state_of<P> const lane_state,
                        lane_view const view,
                        candidate_test const test,
                        float const* __restrict weights,
                        index_t const queries,
                        index_t const size,
                        std::uint32_t* __restrict ranks) {
  std::uint32_t lowest = all_ones;
  std::uint32_t largest = 0;
  for (index_t i = 0; i < size; ++i) {
    slot_view const slot{positions[i], rotary[i]};
    auto& state = states[std::is_empty_v<slot_state_of<P>> ? 0 : i];
    if constexpr (Observes) policy.observe(state, slot, view, weights[i], queries);
    std::uint32_t const bits = priority_bits(priority_of(policy, slot, view, state, lane_state));
    std::uint32_t const rank = bits | test.hides(positions[i]);
    ranks[i] = rank;
    largest = bits > largest ? bits : largest;
    lowest = rank < lowest ? rank : lowest;
  }
  constexpr std::uint32_t infinity = 0x7F800000U;
  if (largest <= infinity) return static_cast<std::int32_t>(lowest & 0x7FFFFFFFU);
  return rank_exactly(positions, test, size, ranks);
}

/// One pass over a lane. `FixedQueries`: their number where it is known to the compiler, else 0.
template <bool Observes, index_t FixedQueries, eviction_policy P>
lowest_slot rank_pass(P const& policy_given,
                      lane_slots<P> const& lane_given,
                      lane_view const& view_given,
                      candidate_range const range,
                      float const* weights,
                      index_t const queries_given) {
  // Only the blocks that hold the minimum are looked at again, for the age of its equals. All
  // minima are compared first and the ranks are kept for that: "lower than all blocks before?" is a
  // toss that the processor often guesses wrong, and a wrong guess costs as much as a block.
  constexpr index_t block = 64;
  constexpr index_t blocks = 16;
  // Copied here and not by the call: that would read by vectors what has just been written number
  // by number, and wait until all of it has reached the cache.
  P const policy = policy_given;
  lane_slots<P> const lane = lane_given;
  lane_view const view = view_given;
  index_t const queries = FixedQueries > 0 ? FixedQueries : queries_given;
  candidate_test const test(range);
  lane_state_of<P> const lane_state = *lane.lane_state;
  alignas(64) std::uint32_t ranks[blocks * block];
  std::int32_t lowest_of[blocks];
  lowest_slot lowest;
  std::uint32_t lowest_age = all_ones;
  for (index_t chunk = 0; chunk < lane.slots; chunk += blocks * block) {
    index_t const size = std::min(blocks * block, lane.slots - chunk);
    auto const rank_from = [&](index_t begin, index_t count) {
      index_t const s = chunk + begin;
      return rank_block<Observes>(policy,
                                  lane.positions + s,
                                  lane.rotary + s,
                                  lane.states + (std::is_empty_v<slot_state_of<P>> ? 0 : s),
                                  lane_state,
                                  view,
                                  test,
                                  Observes ? weights + s : nullptr,
                                  queries,
                                  count,
                                  ranks + begin);
    };
    // Blocks of a constant size, and a last one that takes the rest with it: lanes often have just
    // one slot more than a round number, and it should not cost a block's fixed price.
    index_t const rest = size % block;
    index_t const count = std::max(size / block, 1);
    index_t const constant = rest == 0 ? count : count - 1;
    for (index_t b = 0; b < constant; ++b) lowest_of[b] = rank_from(b * block, block);
    if (rest > 0) lowest_of[constant] = rank_from(constant * block, size - constant * block);
    index_t from = 0;  // the first and the last block that holds the minimum: mostly the same
    index_t to = 0;
    std::int32_t rank = no_candidate;
    for (index_t b = 0; b < count; ++b) {
      from = lowest_of[b] < rank ? b : from;
      to = lowest_of[b] <= rank ? b : to;
      rank = std::min(rank, lowest_of[b]);
    }
    if (rank == no_candidate || rank > lowest.rank) continue;
    if (rank < lowest.rank) lowest_age = all_ones;
    lowest.rank = rank;
    auto const bits = static_cast<std::uint32_t>(rank);
    for (index_t b = from; b <= to; ++b) {
      if (lowest_of[b] != rank) continue;
      index_t const begin = b * block;
      index_t const end = b == count - 1 ? size : begin + block;
      index_t equals = 0;
      std::uint32_t first = all_ones;
      for (index_t i = begin; i < end; ++i) {
        std::uint32_t const other = ranks[i] == bits ? 0U : all_ones;
        std::uint32_t const own = static_cast<std::uint32_t>(i) | other;
        equals += 1 + static_cast<index_t>(other);
        first = own < first ? own : first;
      }
      for (auto i = static_cast<index_t>(first); equals > 0; ++i) {
        if (ranks[i] != bits) continue;
        --equals;
        auto const position = static_cast<std::uint32_t>(lane.positions[chunk + i]);
        std::uint32_t const age = releases_newest_of_equals<P> ? ~position - 1U : position;
        if (age >= lowest_age) continue;
        lowest_age = age;
        lowest.slot = chunk + i;
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
