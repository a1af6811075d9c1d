// SPDX-License-Identifier: Apache-2.0
// Finds the m-th largest key of a lane in one block: four passes over its keys, one per digit of
// eight bits, each counting in shared memory.
#pragma once

#include "adore/gpu/kept_of_prompt.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <limits>

namespace adore::gpu::detail {

// A tile is what a warp reads at once, 4 neighbouring priorities per thread.
inline constexpr index_t best_of_tile = 4 * warp_threads;
inline constexpr float quiet_nan = std::numeric_limits<float>::quiet_NaN();
struct best_of_shared {
  std::uint32_t bins[257];       // of a digit; the last one is for keys that do not count
  std::uint32_t prefix;          // digits of the threshold found so far
  index_t need;                  // how many of the keys with these digits stay
  index_t above[32], equal[32];  // [warp] keys above and at the threshold
};

/// The keys of a lane's tokens, either stored in shared memory or formed anew each time. What is
/// stored are priorities first.
template <bool Stores>
struct key_source {
  std::uint32_t* stored;  // [token, rounded up to tiles]
  float const* priorities;
  prompt_split split;
  bool aligned;  // four priorities can be read at once

  /// Whether `read` may be used for the tiles in [begin, end): nearly all.
  __device__ bool plain(index_t begin, index_t end) const {
    return aligned && split.competes(begin, end);
  }
  /// Priorities of the tokens tile + 4 x thread + 0..3.
  __device__ float4 read(index_t tile) const {
    return __ldg(reinterpret_cast<float4 const*>(priorities + tile + 4 * lane_in_warp()));
  }
  static __device__ uint4 form(float4 const& x) {
    return {prompt_split::key(x.x),
            prompt_split::key(x.y),
            prompt_split::key(x.z),
            prompt_split::key(x.w)};
  }
  /// The same, whatever they are: protected ones come as infinity, none as NaN.
  __device__ float4 read_any(index_t tile) const {
    float x[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      index_t const i = tile + 4 * lane_in_warp() + c;
      x[c] = i >= split.tokens ? quiet_nan : split.competes(i, i + 1) ? priorities[i] : -keep_never;
    }
    return {x[0], x[1], x[2], x[3]};
  }
  /// Keys of tokens, from what was read of them.
  __device__ uint4 form(index_t tile, float4 const& x) const {
    if (split.competes(tile, tile + best_of_tile)) return form(x);
    index_t const i = tile + 4 * lane_in_warp();
    return {split.key(x.x, i), split.key(x.y, i + 1), split.key(x.z, i + 2), split.key(x.w, i + 3)};
  }
  /// Keys as the passes after the first see them.
  __device__ uint4 operator()(index_t tile) const {
    if constexpr (Stores) {
      return *reinterpret_cast<uint4 const*>(place(tile));
    } else {
      return form(tile, plain(tile, tile + best_of_tile) ? read(tile) : read_any(tile));
    }
  }
  /// Where the priorities, and then the keys, of the tokens tile + 4 x thread + 0..3 are stored.
  __device__ std::uint32_t* place(index_t tile) const {
    return stored + tile + 4 * lane_in_warp();
  }
};

/// Reads the priorities of a warp's tiles [begin, end).
///
/// @param take  `void (index_t tile, float4)`
template <bool Stores, class Take>
__device__ __forceinline__ void read_priorities(key_source<Stores> const& keys,
                                                index_t begin,
                                                index_t end,
                                                Take&& take) {
  constexpr index_t together = 4;  // reads under way before the first is waited for
  index_t tile = begin;
  while (tile < end) {
    index_t const upto = tile + together * best_of_tile;
    if (upto <= end && keys.plain(tile, upto)) {
      float4 priorities[together];
#pragma unroll
      for (int n = 0; n < together; ++n) priorities[n] = keys.read(tile + n * best_of_tile);
#pragma unroll
      for (int n = 0; n < together; ++n) take(tile + n * best_of_tile, priorities[n]);
      tile = upto;
    } else {
      take(tile, keys.read_any(tile));
      tile += best_of_tile;
    }
  }
}

/// Counts the keys of a warp's tiles [begin, end) by their highest digit. Where keys are stored
/// they take the place of priorities.
template <bool Stores>
__device__ void count_first_digits(best_of_shared& shared,
                                   key_source<Stores> const& keys,
                                   index_t begin,
                                   index_t end) {
  auto const count = [&](uint4 const& four) {
    atomicAdd(&shared.bins[four.x >> 24U], 1U);
    atomicAdd(&shared.bins[four.y >> 24U], 1U);
    atomicAdd(&shared.bins[four.z >> 24U], 1U);
    atomicAdd(&shared.bins[four.w >> 24U], 1U);
  };
  if constexpr (Stores) {
#pragma unroll 4
    for (index_t tile = begin; tile < end; tile += best_of_tile) {
      std::uint32_t* const place = keys.place(tile);
      uint4 const four = keys.form(tile, *reinterpret_cast<float4 const*>(place));
      *reinterpret_cast<uint4*>(place) = four;
      count(four);
    }
  } else {
    read_priorities(keys, begin, end, [&](index_t tile, float4 const& priorities) {
      count(keys.form(tile, priorities));
    });
  }
}

/// Counts them by another digit, if the digits above it are `prefix`.
template <int Digit, bool Stores>
__device__ void count_digits(best_of_shared& shared,
                             key_source<Stores> const& keys,
                             index_t begin,
                             index_t end) {
  constexpr int shift = 8 * Digit;
  std::uint32_t const prefix = shared.prefix;
  auto const count = [&](std::uint32_t key) {  // without a branch, which costs more than a count
    std::uint32_t const bin = key >> (shift + 8) == prefix ? (key >> shift) & 0xFFU : 256U;
    atomicAdd(&shared.bins[bin], 1U);
  };
#pragma unroll 4
  for (index_t tile = begin; tile < end; tile += best_of_tile) {
    uint4 const four = keys(tile);
    count(four.x);
    count(four.y);
    count(four.z);
    count(four.w);
  }
}

/// Finds the next digit of the threshold: the bin that holds the need-th key from above. One warp.
__device__ inline void choose_digit(best_of_shared& shared) {
  constexpr int own = 256 / warp_threads;
  int const first = 255 - own * lane_in_warp();  // thread 0 has the highest bins
  std::uint32_t counts[own];
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < own; ++i) {
    counts[i] = shared.bins[first - i];
    shared.bins[first - i] = 0;  // for the next digit
    sum += counts[i];
  }
  std::uint32_t upto = sum;
#pragma unroll
  for (int step = 1; step < warp_threads; step *= 2) {
    std::uint32_t const other = __shfl_up_sync(whole_warp, upto, static_cast<unsigned>(step));
    if (lane_in_warp() >= step) upto += other;
  }
  auto const need = static_cast<std::uint32_t>(shared.need);
  std::uint32_t const prefix = shared.prefix;
  __syncwarp();
  std::uint32_t before = upto - sum;
  if (before < need && need <= upto) {  // true in one thread
#pragma unroll
    for (int i = 0; i < own; ++i) {
      if (before < need && need <= before + counts[i]) {
        shared.prefix = (prefix << 8U) | static_cast<std::uint32_t>(first - i);
        shared.need = static_cast<index_t>(need - before);
        before = need;  // no further bin
      } else {
        before += counts[i];
      }
    }
  }
}

/// One digit of the threshold: all threads count, one warp chooses. The bins are zero before.
template <int Digit, bool Stores>
__device__ __forceinline__ void find_digit(best_of_shared& shared,
                                           key_source<Stores> const& keys,
                                           index_t begin,
                                           index_t end) {
  if constexpr (Digit == 3) {
    count_first_digits(shared, keys, begin, end);
  } else {
    count_digits<Digit>(shared, keys, begin, end);
  }
  __syncthreads();
  if (warp_in_block() == 0) choose_digit(shared);
  __syncthreads();
}

}  // namespace adore::gpu::detail
