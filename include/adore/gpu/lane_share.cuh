// SPDX-License-Identifier: Apache-2.0
// The threads that decide on a lane together: a block, or the blocks of a cluster, each with a part
// of the lane's slots.
#pragma once

#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

namespace adore::gpu {

inline constexpr int most_deciding_blocks = 16;  // of a cluster

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
};

namespace detail {

/// Waits for all threads that share the lane; what they wrote is then visible.
__device__ __forceinline__ void sync_lane(lane_share const& share) {
  if (share.blocks > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
}

/// The smallest key of all threads of the block, or of the cluster; all threads call and learn it.
///
/// @param turn  0 or 1, flipped by each call
template <int Warps>
__device__ __forceinline__ keyed_slot smallest_in_lane(keyed_slot own,
                                                       lane_share const& share,
                                                       decision_scratch<Warps>& shared,
                                                       unsigned& turn) {
  keyed_slot best = smallest_in_warp(own);
  int const warps = warps_in_block();
  if (lane_in_warp() == 0) shared.of_warp[turn][warp_in_block()] = best;
  __syncthreads();
  best = shared.of_warp[turn][0];
  for (int w = 1; w < warps; ++w) {
    if (shared.of_warp[turn][w].key < best.key) best = shared.of_warp[turn][w];
  }
  if (share.blocks > 1) {
    // told to all, since who asks another block waits for the answer
    if (threadIdx.x < share.blocks) {
      *shared_of(&shared.of_block[turn][share.rank], threadIdx.x) = best;
    }
    sync_cluster();
    for (unsigned b = 0; b < share.blocks; ++b) {
      keyed_slot const other = shared.of_block[turn][b];
      if (other.key < best.key) best = other;
    }
  }
  turn ^= 1U;
  return best;
}

}  // namespace detail
}  // namespace adore::gpu
