// SPDX-License-Identifier: Apache-2.0
// What a tile of K or V needs before it is multiplied: the step's new tokens, and zeros where
// nobody is.
#pragma once

#include "adore/gpu/fragments.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

namespace adore::gpu::detail {

/// Puts the new tokens of half a tile where they belong: in the tile, and in the store.
///
/// @param half      K or V, [slot, channel]
/// @param position  of slot lane_in_warp() % 16
/// @param fresh     index_t j -> the j-th new token's row in shared memory
/// @param stored    index_t r -> row r of the store, or nullptr if new tokens are stored already
template <class T, int Channels, class Fresh, class Stored>
__device__ __forceinline__ void append_to_half(
    shared_pointer half, position_t position, position_t next, Fresh&& fresh, Stored&& stored) {
  constexpr int row_bytes = row_cut<T, Channels>::bytes;
  unsigned new_ones = __ballot_sync(whole_warp, position >= next) & 0xFFFFU;
#pragma unroll 1
  for (; new_ones != 0; new_ones &= new_ones - 1) {
    int const r = __ffs(static_cast<int>(new_ones)) - 1;
    index_t const j = __shfl_sync(whole_warp, position, r) - next;
    T* const to = stored(r);
#pragma unroll 1
    for (int i = lane_in_warp(); i < row_bytes / 16; i += warp_threads) {
      auto const at = static_cast<unsigned>(16 * i);
      uint4 const x = load_shared_16(fresh(j) + at);
      store_shared_16(half + static_cast<unsigned>(r * row_bytes) + at, x);
      if (to != nullptr) *reinterpret_cast<uint4*>(reinterpret_cast<char*>(to) + at) = x;
    }
  }
  fence_before_copy();
  __syncwarp();
}

/// Values of nobody become zeros, since what lies there may be NaN.
template <class T, int Channels>
__device__ __forceinline__ void clear_values(shared_pointer half, position_t position) {
  constexpr int vectors = row_cut<T, Channels>::bytes / 16;
  unsigned const nobody = __ballot_sync(whole_warp, position < 0);
  if ((nobody & 0xFFFFU) == 0) return;
#pragma unroll 1
  for (int i = lane_in_warp(); i < tile_slots * vectors; i += warp_threads) {
    if (((nobody >> static_cast<unsigned>(i / vectors)) & 1U) != 0) {
      store_shared_16(half + static_cast<unsigned>(16 * i), {0, 0, 0, 0});
    }
  }
}

}  // namespace adore::gpu::detail
