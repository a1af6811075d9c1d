// SPDX-License-Identifier: Apache-2.0
// The threads that end a lane's step together: a block, several blocks, each with a part of the
// lane's slots, or one warp beside others that end lanes of their own.
#pragma once

#include "adore/gpu/lane_exchange.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error "adore: attention and decisions on the device need compute capability 9.0: -arch=sm_90"
#endif

namespace adore::gpu {

inline constexpr int most_cluster_blocks = 16;  // that share a lane

/// Shared memory of a block that decides. Two of each, used in turn, so that nobody writes over
/// what others still read.
///
/// @tparam Warps  the most that a block has
template <int Warps>
struct decision_scratch {
  keyed_slot of_warp[2][Warps];
  keyed_slot of_block[2][most_cluster_blocks];
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

/// How the threads of a warp join what each of them has found, so that all learn it.
struct smallest_key {
  static __device__ __forceinline__ keyed_slot nothing() { return {no_key, -1}; }
  static __device__ __forceinline__ keyed_slot both(keyed_slot one, keyed_slot other) {
    return other.key < one.key ? other : one;
  }
  static __device__ __forceinline__ keyed_slot in_warp(keyed_slot own) {
    return smallest_in_warp(own);
  }
};
struct sum_of_slots {
  static __device__ __forceinline__ keyed_slot nothing() { return {0, 0}; }
  static __device__ __forceinline__ keyed_slot both(keyed_slot one, keyed_slot other) {
    return {0, one.slot + other.slot};
  }
  static __device__ __forceinline__ keyed_slot in_warp(keyed_slot own) {
    return {0, __reduce_add_sync(whole_warp, own.slot)};
  }
};

/// Joins what the blocks that share a lane have found; all their threads call and learn it. Not
/// inlined: few launches share lanes, and it is called in many places.
///
/// @param of_block  [block] in this block's shared memory
template <class Join>
static __device__ __noinline__ keyed_slot join_blocks(keyed_slot own,
                                                      unsigned rank,
                                                      unsigned blocks,
                                                      lane_exchange exchange,
                                                      unsigned turn,
                                                      keyed_slot* of_block) {
  if (exchange.there()) {
    of_block = exchange.lowest(turn);
    if (threadIdx.x == 0) of_block[rank] = own;
    exchange.meet();
  } else {
    // told to all, since who asks another block waits for the answer
    if (threadIdx.x < blocks) *shared_of(&of_block[rank], threadIdx.x) = own;
    sync_cluster();
  }
  own = Join::nothing();
  for (auto b = static_cast<unsigned>(lane_in_warp()); b < blocks; b += warp_threads) {
    own = Join::both(own, of_block[b]);
  }
  return Join::in_warp(own);
}

/// Joins what all threads that end the lane have found; all of them call and learn it.
///
/// @param turn  0 or 1, flipped by each call
template <class Join, int Warps>
__device__ __forceinline__ keyed_slot join_lane(keyed_slot own,
                                                lane_share const& share,
                                                decision_scratch<Warps>& shared,
                                                unsigned& turn) {
  own = Join::in_warp(own);
  if (share.one_warp) {
    __syncwarp();  // what the others wrote before is visible, as after a barrier
    return own;
  }
  if (lane_in_warp() == 0) shared.of_warp[turn][warp_in_block()] = own;
  __syncthreads();
  own = Join::nothing();
  if (lane_in_warp() < warps_in_block()) own = shared.of_warp[turn][lane_in_warp()];
  own = Join::in_warp(own);
  if (share.blocks > 1) {
    own = join_blocks<Join>(
        own, share.rank, share.blocks, share.exchange, turn, shared.of_block[turn]);
  }
  turn ^= 1U;
  return own;
}

/// The smallest key of all threads that end the lane; as `join_lane`.
template <int Warps>
__device__ __forceinline__ keyed_slot smallest_in_lane(keyed_slot own,
                                                       lane_share const& share,
                                                       decision_scratch<Warps>& shared,
                                                       unsigned& turn) {
  return join_lane<smallest_key>(own, share, shared, turn);
}

/// The sum over all threads that end the lane; as `join_lane`.
template <int Warps>
__device__ __forceinline__ index_t
sum_in_lane(index_t own, lane_share const& share, decision_scratch<Warps>& shared, unsigned& turn) {
  return join_lane<sum_of_slots>({0, own}, share, shared, turn).slot;
}

}  // namespace detail
}  // namespace adore::gpu
