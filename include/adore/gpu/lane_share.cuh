// SPDX-License-Identifier: Apache-2.0
// The threads that end a lane's step together: a block, several blocks, each with a part of the
// lane's slots, or one warp beside others that end lanes of their own.
#pragma once

#include "adore/gpu/lane_exchange.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

namespace adore::gpu {

inline constexpr int most_deciding_blocks = 16;  // of a lane

/// Shared memory of a block that decides. Two of each, used in turn, so that nobody writes over
/// what others still read.
///
/// @tparam Warps  the most that a block has
template <int Warps>
struct decision_scratch {
  keyed_slot of_warp[2][Warps];
  keyed_slot of_block[2][most_deciding_blocks];
};

/// The blocks that share a lane's slots, and the part of them that is this block's: [first, end).
struct lane_share {
  unsigned rank = 0, blocks = 1;
  index_t first = 0, end = 0;
  bool one_warp = false;             ///< of the block ends the lane; otherwise all do
  detail::lane_exchange exchange{};  ///< where several blocks meet that are no cluster

  /// Of the block's threads that end the lane: this one's number, and how many they are.
  __device__ __forceinline__ index_t thread() const {
    return one_warp ? lane_in_warp() : static_cast<index_t>(threadIdx.x);
  }
  __device__ __forceinline__ index_t threads() const {
    return one_warp ? warp_threads : static_cast<index_t>(blockDim.x);
  }
};

namespace detail {

/// Waits for all threads that share the lane; what they wrote is then visible.
__device__ __forceinline__ void sync_lane(lane_share const& share) {
  if (share.exchange.there()) {
    share.exchange.meet();
  } else if (share.blocks > 1) {
    sync_cluster();
  } else if (share.one_warp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/// The smallest of what the blocks that share a lane have found; all their threads call and learn
/// it. Not inlined: few launches share lanes, and it is called in many places.
///
/// @param of_block  [block] in this block's shared memory
inline __device__ __noinline__ keyed_slot smallest_of_blocks(keyed_slot best,
                                                             unsigned rank,
                                                             unsigned blocks,
                                                             lane_exchange exchange,
                                                             unsigned turn,
                                                             keyed_slot* of_block) {
  if (exchange.there()) {
    keyed_slot* const found = exchange.lowest(turn);
    if (threadIdx.x == 0) found[rank] = best;
    exchange.meet();
    return smallest_in_warp(found[lane_in_warp() % lane_exchange::blocks]);
  }
  // told to all, since who asks another block waits for the answer
  if (threadIdx.x < blocks) *shared_of(&of_block[rank], threadIdx.x) = best;
  sync_cluster();
  best = {no_key, -1};
  if (static_cast<unsigned>(lane_in_warp()) < blocks) best = of_block[lane_in_warp()];
  return smallest_in_warp(best);
}

/// The smallest key of all threads that end the lane; all of them call and learn it.
///
/// @param turn  0 or 1, flipped by each call
template <int Warps>
__device__ __forceinline__ keyed_slot smallest_in_lane(keyed_slot own,
                                                       lane_share const& share,
                                                       decision_scratch<Warps>& shared,
                                                       unsigned& turn) {
  keyed_slot best = smallest_in_warp(own);
  if (share.one_warp) {
    __syncwarp();  // what the others wrote before is visible, as after a barrier
    return best;
  }
  if (lane_in_warp() == 0) shared.of_warp[turn][warp_in_block()] = best;
  __syncthreads();
  best = {no_key, -1};
  if (lane_in_warp() < warps_in_block()) best = shared.of_warp[turn][lane_in_warp()];
  best = smallest_in_warp(best);
  if (share.blocks > 1) {
    best = smallest_of_blocks(
        best, share.rank, share.blocks, share.exchange, turn, shared.of_block[turn]);
  }
  turn ^= 1U;
  return best;
}

/// The sum over all threads that end the lane; all of them call and learn it.
///
/// @param turn  0 or 1, flipped by each call
template <int Warps>
__device__ __forceinline__ index_t
sum_in_lane(index_t own, lane_share const& share, decision_scratch<Warps>& shared, unsigned& turn) {
  index_t const of_warp = __reduce_add_sync(whole_warp, own);
  if (share.one_warp) {
    __syncwarp();
    return of_warp;
  }
  if (lane_in_warp() == 0) shared.of_warp[turn][warp_in_block()].slot = of_warp;
  __syncthreads();
  index_t sum = 0;
  for (int w = 0; w < warps_in_block(); ++w) sum += shared.of_warp[turn][w].slot;
  if (share.exchange.there()) {
    keyed_slot* const of_block = share.exchange.lowest(turn);
    if (threadIdx.x == 0) of_block[share.rank].slot = sum;
    share.exchange.meet();
    index_t const b = lane_in_warp();
    sum = __reduce_add_sync(whole_warp, b < lane_exchange::blocks ? of_block[b].slot : 0);
  } else if (share.blocks > 1) {
    if (threadIdx.x < share.blocks) {
      shared_of(&shared.of_block[turn][share.rank], threadIdx.x)->slot = sum;
    }
    sync_cluster();
    sum = 0;
    for (unsigned b = 0; b < share.blocks; ++b) sum += shared.of_block[turn][b].slot;
  }
  turn ^= 1U;
  return sum;
}

}  // namespace detail
}  // namespace adore::gpu
