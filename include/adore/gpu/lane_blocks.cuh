// SPDX-License-Identifier: Apache-2.0
// Which block of consecutive positions a lane gives up first, for policies that release whole
// blocks.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/warp.cuh"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// Block `number` holds the positions number x granule and the granule - 1 after it; -1: there is
/// none. `rank` is the priority of its best token, ordered as in `order_key`.
struct block_of_tokens {
  index_t number = -1;
  std::uint32_t rank = 0;
};

/// Finds the block that goes first of those that may: complete, without a protected token, and, of
/// a lane within its budget, worth `keep_never`. All threads of the lane call it together.
///
/// @param granule    positions of a block
/// @param key_of     (slot, position) -> the token's key as in `lane_end`
/// @param lowest_of  is given (slot, position) -> `keyed_slot`, and tells all threads the smallest
///                   of the lane's tokens
/// Source: the same rule as in eviction/select.hpp.
/// Cost:   a pass over the slots per block of the lane. It is asked when a lane is over its budget,
///         for blocks of g tokens in one step of g.
template <bool NewestOfEquals, class KeyOf, class LowestOf>
__device__ block_of_tokens
lowest_block(index_t granule, position_t newest, bool over, KeyOf&& key_of, LowestOf&& lowest_of) {
  constexpr std::uint32_t never = static_cast<std::uint32_t>(ordered_keep_never) ^ 0x80000000U;
  constexpr std::uint32_t of_protected = 0xFFFFFFFFU;  // above +infinity
  block_of_tokens lowest;
  for (index_t from = 0;;) {
    // the first block from there on, and of its tokens the best, whose complement is the smallest
    keyed_slot const best = lowest_of([&](index_t s, position_t p) -> keyed_slot {
      index_t const number = p / granule;
      if (number < from) return {no_key, -1};
      keyed_slot const token = key_of(s, p);
      std::uint32_t const rank =
          token.slot < 0 ? of_protected : static_cast<std::uint32_t>(token.key >> 32U);
      return {(static_cast<std::uint64_t>(number) << 32U) | ~rank, s};
    });
    if (best.slot < 0) return lowest;
    auto const number = static_cast<index_t>(best.key >> 32U);
    if (std::int64_t{number + 1} * granule - 1 > newest) return lowest;  // and all that follow
    std::uint32_t const rank = ~static_cast<std::uint32_t>(best.key);
    bool const goes_first =
        lowest.number < 0 || rank < lowest.rank || (NewestOfEquals && rank == lowest.rank);
    if (rank != of_protected && (over || rank == never) && goes_first) lowest = {number, rank};
    from = number + 1;
  }
}

}  // namespace adore::gpu::detail
