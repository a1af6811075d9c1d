// SPDX-License-Identifier: Apache-2.0
// Finds the m-th largest key of a lane in one block: by its highest 11 bits, which leave few keys
// that are then looked at alone, or by passes over all keys, 11 and 10 bits each, if they leave
// many.
#pragma once

#include "adore/gpu/kept_of_prompt.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu::detail {

// A tile is what a warp reads at once, 4 neighbouring priorities per thread.
inline constexpr index_t best_of_tile = 4 * warp_threads;
inline constexpr int first_shift = 21, second_shift = 10;  // digits of 11, 11 and 10 bits
inline constexpr index_t most_listed = 512;                // keys that are looked at alone

struct best_of_shared {
  std::uint32_t bins[(1 << 11) + 1];  // of a digit; the last one is for keys that do not count
  std::uint32_t prefix;               // digits of the threshold found so far
  index_t need;                       // how many of the keys with these digits stay
  index_t in_bin;                     // how many keys have these digits
  index_t above[32], equal[32];       // [warp] keys above and at the threshold
  std::uint32_t warp_sums[32];
  std::uint32_t listed_keys[most_listed];
  std::uint8_t listed_warps[most_listed];  // whose run the key is in
  index_t listed;
};

/// The keys of a lane's tokens, either stored in shared memory or formed anew each time.
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
  /// Keys of these tokens, whatever they are.
  __device__ uint4 form(index_t tile) const {
    std::uint32_t key[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      index_t const i = tile + 4 * lane_in_warp() + c;
      key[c] = split.key(i < split.tokens ? priorities[i] : 0.0F, i);
    }
    return {key[0], key[1], key[2], key[3]};
  }
  /// The same after the first pass.
  __device__ uint4 operator()(index_t tile) const {
    if constexpr (Stores) {
      return *reinterpret_cast<uint4 const*>(stored + tile + 4 * lane_in_warp());
    } else {
      return plain(tile, tile + best_of_tile) ? form(read(tile)) : form(tile);
    }
  }
  __device__ void store(index_t tile, uint4 const& four) const {
    if constexpr (Stores) {
      *reinterpret_cast<uint4*>(stored + tile + 4 * lane_in_warp()) = four;
    }
  }
};

/// Counts the keys of a warp's tiles [begin, end) by their highest digit while they are read.
template <bool Stores>
__device__ void count_first_digits(best_of_shared& shared,
                                   key_source<Stores> const& keys,
                                   index_t begin,
                                   index_t end) {
  auto const take = [&](index_t tile, uint4 const& four) {
    keys.store(tile, four);
    atomicAdd(&shared.bins[four.x >> first_shift], 1U);
    atomicAdd(&shared.bins[four.y >> first_shift], 1U);
    atomicAdd(&shared.bins[four.z >> first_shift], 1U);
    atomicAdd(&shared.bins[four.w >> first_shift], 1U);
  };
  constexpr index_t together = 4;  // reads under way before the first is waited for
  index_t tile = begin;
  while (tile < end) {
    index_t const upto = tile + together * best_of_tile;
    if (upto <= end && keys.plain(tile, upto)) {
      float4 priorities[together];
#pragma unroll
      for (int n = 0; n < together; ++n) priorities[n] = keys.read(tile + n * best_of_tile);
#pragma unroll
      for (int n = 0; n < together; ++n) {
        take(tile + n * best_of_tile, keys.form(priorities[n]));
      }
      tile = upto;
    } else {
      take(tile, keys.form(tile));
      tile += best_of_tile;
    }
  }
}

/// Counts them by the `Bits` from `Shift` on, if the digits above are `prefix`.
template <int Shift, int Bits, bool Stores>
__device__ void count_digits(best_of_shared& shared,
                             key_source<Stores> const& keys,
                             index_t begin,
                             index_t end) {
  std::uint32_t const prefix = shared.prefix;
  auto const count = [&](std::uint32_t key) {  // without a branch, which costs more than a count
    std::uint32_t const digit = (key >> Shift) & ((1U << Bits) - 1U);
    atomicAdd(&shared.bins[key >> (Shift + Bits) == prefix ? digit : 1U << 11U], 1U);
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

/// The same for the keys that were listed.
template <int Shift, int Bits, int Threads>
__device__ void count_listed_digits(best_of_shared& shared) {
  std::uint32_t const prefix = shared.prefix;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < shared.listed; i += Threads) {
    std::uint32_t const key = shared.listed_keys[i];
    if (key >> (Shift + Bits) != prefix) continue;
    atomicAdd(&shared.bins[(key >> Shift) & ((1U << Bits) - 1U)], 1U);
  }
}

/// Finds the next digit of the threshold: the bin that holds the need-th key from above. All
/// threads call it after they have counted; the bins are zero afterwards.
template <int Bits, int Threads>
__device__ void choose_digit(best_of_shared& shared) {
  constexpr int own = (1 << Bits) / Threads;
  static_assert(own >= 1);
  __syncthreads();  // all have counted
  // thread 0 has the highest bins
  int const first = (1 << Bits) - 1 - own * static_cast<int>(threadIdx.x);
  std::uint32_t counts[own];
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < own; ++i) {
    counts[i] = shared.bins[first - i];
    shared.bins[first - i] = 0;
    sum += counts[i];
  }
  std::uint32_t upto = sum;
#pragma unroll
  for (int step = 1; step < warp_threads; step *= 2) {
    std::uint32_t const other = __shfl_up_sync(whole_warp, upto, static_cast<unsigned>(step));
    if (lane_in_warp() >= step) upto += other;
  }
  if (lane_in_warp() == warp_threads - 1) shared.warp_sums[warp_in_block()] = upto;
  auto const need = static_cast<std::uint32_t>(shared.need);
  std::uint32_t const prefix = shared.prefix;
  __syncthreads();
  std::uint32_t before = upto - sum;
  for (int w = 0; w < warp_in_block(); ++w) before += shared.warp_sums[w];
  if (before < need && need <= before + sum) {  // true in one thread
#pragma unroll
    for (int i = 0; i < own; ++i) {
      if (before < need && need <= before + counts[i]) {
        shared.prefix =
            (prefix << static_cast<unsigned>(Bits)) | static_cast<std::uint32_t>(first - i);
        shared.need = static_cast<index_t>(need - before);
        shared.in_bin = static_cast<index_t>(counts[i]);
        before = need;  // no further bin
      } else {
        before += counts[i];
      }
    }
  }
  __syncthreads();
}

/// Lists the keys whose first digit is the threshold's, and counts those above it, per warp.
template <bool Stores>
__device__ void list_keys(best_of_shared& shared,
                          key_source<Stores> const& keys,
                          index_t begin,
                          index_t end) {
  std::uint32_t const prefix = shared.prefix;
  index_t above = 0;
  auto const look = [&](std::uint32_t key) {
    std::uint32_t const digit = key >> first_shift;
    if (digit > prefix && key != key_of_keep_never) ++above;
    if (digit != prefix) return;
    index_t const i = atomicAdd(&shared.listed, 1);
    shared.listed_keys[i] = key;
    shared.listed_warps[i] = static_cast<std::uint8_t>(warp_in_block());
  };
#pragma unroll 4
  for (index_t tile = begin; tile < end; tile += best_of_tile) {
    uint4 const four = keys(tile);
    look(four.x);
    look(four.y);
    look(four.z);
    look(four.w);
  }
  above = __reduce_add_sync(whole_warp, above);
  if (lane_in_warp() == 0) {
    shared.above[warp_in_block()] = above;
    shared.equal[warp_in_block()] = 0;
  }
}

/// Finds the threshold, `shared.prefix`, of which `shared.need` stay, and counts the keys above and
/// at it, per warp. All threads call it; `shared` is new.
///
/// @param keep  how many stay
template <int Threads, bool Stores>
__device__ void find_threshold(best_of_shared& shared,
                               key_source<Stores> const& keys,
                               index_t keep,
                               index_t begin,
                               index_t end) {
  auto const thread = static_cast<index_t>(threadIdx.x);
  for (index_t b = thread; b <= 1 << 11; b += Threads) shared.bins[b] = 0;
  if (thread == 0) {
    shared.prefix = 0;
    shared.need = keep;
    shared.listed = 0;
  }
  __syncthreads();
  count_first_digits(shared, keys, begin, end);
  choose_digit<11, Threads>(shared);
  // A token that is never kept goes even if there is room; worse ones are NaN alone.
  auto const better = [&](std::uint32_t key, std::uint32_t threshold) {
    return key > threshold && key != key_of_keep_never;
  };
  if (shared.in_bin <= most_listed) {
    list_keys(shared, keys, begin, end);
    __syncthreads();
    count_listed_digits<second_shift, 11, Threads>(shared);
    choose_digit<11, Threads>(shared);
    count_listed_digits<0, 10, Threads>(shared);
    choose_digit<10, Threads>(shared);
    for (index_t i = thread; i < shared.listed; i += Threads) {
      std::uint32_t const key = shared.listed_keys[i];
      index_t const warp = shared.listed_warps[i];
      if (better(key, shared.prefix)) atomicAdd(&shared.above[warp], 1);
      if (key == shared.prefix) atomicAdd(&shared.equal[warp], 1);
    }
  } else {
    count_digits<second_shift, 11>(shared, keys, begin, end);
    choose_digit<11, Threads>(shared);
    count_digits<0, 10>(shared, keys, begin, end);
    choose_digit<10, Threads>(shared);
    index_t above = 0, equal = 0;
    for (index_t tile = begin; tile < end; tile += best_of_tile) {
      uint4 const four = keys(tile);
      std::uint32_t const key[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (better(key[c], shared.prefix)) ++above;
        if (key[c] == shared.prefix) ++equal;
      }
    }
    above = __reduce_add_sync(whole_warp, above);
    equal = __reduce_add_sync(whole_warp, equal);
    if (lane_in_warp() == 0) {
      shared.above[warp_in_block()] = above;
      shared.equal[warp_in_block()] = equal;
    }
  }
  __syncthreads();
}

}  // namespace adore::gpu::detail
