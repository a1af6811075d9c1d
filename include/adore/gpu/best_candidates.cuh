// SPDX-License-Identifier: Apache-2.0
// The best m of a lane of n tokens where m is a small part of n: nearly all tokens are dismissed by
// one comparison each, and the rest is chosen from alone.
#pragma once

#include "adore/gpu/kept_of_prompt.cuh"
#include "adore/gpu/radix_threshold.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu::detail {

/// Candidates of a lane, as many as a warp has room for in registers.
inline constexpr index_t most_candidates = 512;

/// What a block keeps of a lane's candidates.
template <int Threads>
struct candidates_shared {
  static constexpr int warps = Threads / warp_threads;
  static constexpr int strands = Threads == 256 ? 2 : 1;  // of a thread

  union {
    std::uint32_t largest[strands * Threads];  // [strand] of the keys that a thread has read
    std::uint32_t keys[most_candidates];
  };
  std::uint16_t tokens[most_candidates];  // in the order of `keys`; a lane has fewer than 65536
  index_t count;                          // of candidates
  bool has_pivot;
  float pivot;              // no candidate's priority is below it
  std::uint32_t threshold;  // the smallest key that stays
  index_t equal_kept;       // of the tokens with that key
  index_t above[warps], equal[warps];
};

/// Of the keys that one warp's threads hold in registers, how many are at least `key`.
template <int N>
__device__ __forceinline__ index_t count_from(std::uint32_t const (&own)[N], std::uint32_t key) {
  index_t count = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) count += own[i] >= key ? 1 : 0;
  return __reduce_add_sync(whole_warp, count);
}

/// A priority above `keep_never` that at least `need` of all strands reach, and not many more if
/// that is found quickly: at least `need` tokens reach it, too. One warp.
template <int Threads>
__device__ void choose_pivot(candidates_shared<Threads>& shared, index_t need) {
  constexpr int own_strands = candidates_shared<Threads>::strands * Threads / warp_threads;
  std::uint32_t own[own_strands];
#pragma unroll
  for (int i = 0; i < own_strands; ++i) own[i] = shared.largest[i * warp_threads + lane_in_warp()];
  std::uint32_t pivot = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; --bit) {
    std::uint32_t const higher = pivot | (1U << bit);
    index_t const count = count_from(own, higher);
    if (count < need) continue;
    pivot = higher;
    if (count <= need + need / 8) break;
  }
  if (lane_in_warp() != 0) return;
  shared.has_pivot = pivot > key_of_keep_never;
  shared.pivot = shared.has_pivot ? prompt_split::priority(pivot) : 0.0F;
  shared.count = 0;
}

/// Lists the tokens of a warp's tiles that reach the pivot, in any order.
///
/// @pre  at most 16 tiles
template <int Threads>
__device__ void list_candidates(candidates_shared<Threads>& shared,
                                key_source<true> const& keys,
                                index_t begin,
                                index_t end) {
  float const pivot = shared.pivot;
  std::uint64_t reach = 0;  // bit 4 t + c: the c-th of this thread's tokens in tile t
  int shift = 0;
  for (index_t tile = begin; tile < end; tile += best_of_tile, shift += 4) {
    float4 const x = *reinterpret_cast<float4 const*>(keys.place(tile));
    unsigned const four = (x.x >= pivot ? 1U : 0U) | (x.y >= pivot ? 2U : 0U) |
                          (x.z >= pivot ? 4U : 0U) | (x.w >= pivot ? 8U : 0U);
    reach |= std::uint64_t{four} << shift;
  }
  index_t const own = __popcll(reach);
  index_t upto = own;
#pragma unroll
  for (int step = 1; step < warp_threads; step *= 2) {
    index_t const other = __shfl_up_sync(whole_warp, upto, static_cast<unsigned>(step));
    if (lane_in_warp() >= step) upto += other;
  }
  index_t place = 0;
  if (lane_in_warp() == warp_threads - 1) place = atomicAdd(&shared.count, upto);
  place = __shfl_sync(whole_warp, place, warp_threads - 1) + upto - own;
  for (; reach != 0; reach &= reach - 1, ++place) {
    if (place >= most_candidates) break;
    int const bit = __ffsll(static_cast<long long>(reach)) - 1;
    index_t const token = begin + bit / 4 * best_of_tile + 4 * lane_in_warp() + bit % 4;
    shared.tokens[place] = static_cast<std::uint16_t>(token);
    shared.keys[place] = keys.split.key(__builtin_bit_cast(float, keys.stored[token]), token);
  }
}

/// Finds the need-th largest key among the candidates, of which there are as many at least. One
/// warp.
template <int Threads>
__device__ void choose_threshold(candidates_shared<Threads>& shared, index_t need) {
  constexpr int own_keys = most_candidates / warp_threads;
  std::uint32_t own[own_keys];
  std::uint32_t largest = 0, smallest = key_of_protected;
#pragma unroll
  for (int i = 0; i < own_keys; ++i) {
    index_t const number = i * warp_threads + lane_in_warp();
    bool const is_one = number < shared.count;
    own[i] = is_one ? shared.keys[number] : key_of_no_token;
    largest = max(largest, own[i]);
    if (is_one) smallest = min(smallest, own[i]);
  }
  largest = __reduce_max_sync(whole_warp, largest);
  smallest = __reduce_min_sync(whole_warp, smallest);
  int bit = 31 - __clz(static_cast<int>(smallest ^ largest));  // -1 if they are equal
  std::uint32_t threshold = bit < 0 ? largest : largest >> bit >> 1U << bit << 1U;
#pragma unroll 1
  for (; bit >= 0; --bit) {
    std::uint32_t const higher = threshold | (1U << bit);
    index_t const count = count_from(own, higher);
    if (count < need) continue;
    threshold = higher;
    if (count == need) break;
  }
  smallest = key_of_protected;  // that reaches it
#pragma unroll
  for (int i = 0; i < own_keys; ++i) {
    if (own[i] >= threshold) smallest = min(smallest, own[i]);
  }
  threshold = __reduce_min_sync(whole_warp, smallest);
  index_t const above = threshold == key_of_protected ? 0 : count_from(own, threshold + 1);
  if (lane_in_warp() != 0) return;
  shared.threshold = threshold;
  shared.equal_kept = need - above;
}

/// Writes the tokens that stay, ascending, by way of a bit per token in the place of priorities.
template <int Threads>
__device__ void write_kept(candidates_shared<Threads>& shared,
                           key_source<true> const& keys,
                           position_t* kept,
                           bool newest_first) {
  auto const thread = static_cast<index_t>(threadIdx.x);
  index_t const words = (keys.split.tokens + 31) / 32;
  std::uint32_t* const above = keys.stored;
  std::uint32_t* const equal = keys.stored + words;  // there is room: a tile has 128 tokens
  std::uint32_t const threshold = shared.threshold;
  for (index_t w = thread; w < 2 * words; w += Threads) above[w] = 0;
  __syncthreads();
  for (index_t i = thread; i < shared.count; i += Threads) {
    std::uint32_t const key = shared.keys[i];
    index_t const token = shared.tokens[i];
    if (key >= threshold)
      atomicOr((key == threshold ? equal : above) + token / 32, 1U << token % 32);
  }
  __syncthreads();
  // each thread has neighbouring words
  index_t const own_words = (words + Threads - 1) / Threads;
  index_t const first = min(words, thread * own_words);
  index_t const end = min(words, first + own_words);
  index_t own_above = 0, own_equal = 0;
  for (index_t w = first; w < end; ++w) {
    own_above += __popc(above[w]);
    own_equal += __popc(equal[w]);
  }
  index_t above_upto = own_above, equal_upto = own_equal;
#pragma unroll
  for (int step = 1; step < warp_threads; step *= 2) {
    index_t const other_above = __shfl_up_sync(whole_warp, above_upto, static_cast<unsigned>(step));
    index_t const other_equal = __shfl_up_sync(whole_warp, equal_upto, static_cast<unsigned>(step));
    if (lane_in_warp() < step) continue;
    above_upto += other_above;
    equal_upto += other_equal;
  }
  if (lane_in_warp() == warp_threads - 1) {
    shared.above[warp_in_block()] = above_upto;
    shared.equal[warp_in_block()] = equal_upto;
  }
  __syncthreads();
  index_t place = above_upto - own_above, number = equal_upto - own_equal, equal_total = 0;
  for (index_t w = 0; w < candidates_shared<Threads>::warps; ++w) {
    if (w < warp_in_block()) {
      place += shared.above[w];
      number += shared.equal[w];
    }
    equal_total += shared.equal[w];
  }
  // of equals the newest `equal_kept` stay, or the oldest
  index_t const first_kept = newest_first ? 0 : equal_total - shared.equal_kept;
  index_t const end_kept = first_kept + shared.equal_kept;
  place += min(max(number - first_kept, 0), shared.equal_kept);
  for (index_t w = first; w < end; ++w) {
    std::uint32_t stays = above[w];
    for (std::uint32_t rest = equal[w]; rest != 0; rest &= rest - 1, ++number) {
      if (number >= first_kept && number < end_kept) stays |= rest & (~rest + 1U);
    }
    for (; stays != 0; stays &= stays - 1)
      kept[place++] = 32 * w + __ffs(static_cast<int>(stays)) - 1;
  }
}

/// Reads and stores a lane's priorities and writes which tokens stay: `keys.split.keep` of them.
/// All threads call it.
///
/// @param begin, end    of the warp's tiles, at most 16
/// @param kept          [keep], ascending
/// @param newest_first  of equal priorities the newest goes first
/// @return  false if there would be too many candidates: a large part of the lane stays, or many
///          priorities are equal; or if something might go that is never kept. Priorities are
///          stored then
template <int Threads>
__device__ bool keep_best_candidates(candidates_shared<Threads>& shared,
                                     key_source<true> const& keys,
                                     index_t begin,
                                     index_t end,
                                     position_t* kept,
                                     bool newest_first) {
  constexpr int strands = candidates_shared<Threads>::strands;
  float largest[2] = {quiet_nan, quiet_nan};  // fmaxf prefers what is not NaN
  read_priorities(keys, begin, end, [&](index_t tile, float4 const& x) {
    *reinterpret_cast<float4*>(keys.place(tile)) = x;
    largest[0] = fmaxf(largest[0], fmaxf(x.x, x.y));
    largest[1] = fmaxf(largest[1], fmaxf(x.z, x.w));
  });
  index_t const need = keys.split.keep;
  auto const thread = static_cast<int>(threadIdx.x);
  if constexpr (strands == 2) {
    shared.largest[thread] = prompt_split::key(largest[0]);
    shared.largest[Threads + thread] = prompt_split::key(largest[1]);
  } else {
    shared.largest[thread] = prompt_split::key(fmaxf(largest[0], largest[1]));
  }
  __syncthreads();
  if (need > strands * Threads) return false;
  if (warp_in_block() == 0) choose_pivot(shared, need);
  __syncthreads();
  if (!shared.has_pivot) return false;
  list_candidates(shared, keys, begin, end);
  __syncthreads();
  if (shared.count > most_candidates) return false;
  if (warp_in_block() == 0) choose_threshold(shared, need);
  __syncthreads();
  write_kept(shared, keys, kept, newest_first);
  return true;
}

}  // namespace adore::gpu::detail
