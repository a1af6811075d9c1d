// SPDX-License-Identifier: Apache-2.0
// The selection at the end of a prompt: the best m of n tokens of each lane, many lanes at once.
#pragma once

#include "adore/gpu/best_candidates.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kept_of_prompt.cuh"
#include "adore/gpu/radix_threshold.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/invalid_field.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace adore::gpu {

/// One number per lane, or the same for all.
struct per_lane {
  index_t all = 0;
  index_t const* each = nullptr;  // [lane] on the device; nullptr: `all`

  __device__ index_t operator()(index_t lane) const { return each == nullptr ? all : each[lane]; }
};

/// Priorities of lanes of tokens, and how many of them stay. Token i of a lane has position i.
struct best_of_args {
  float const* priorities = nullptr;  // [lane, stride]
  std::int64_t stride = 0;            // elements from lane to lane
  index_t lanes = 0;
  index_t most = 0;              // the largest number of tokens of a lane, <= stride
  per_lane tokens;               // 0..most
  per_lane keep;                 // how many stay at most
  index_t first = 0;             // `protected_first` of the policy
  index_t newest = 0;            // `protected_newest`
  bool newest_first = false;     // of equal priorities the newest goes first
  position_t* kept = nullptr;    // out: [lane, kept_stride], ascending
  std::int64_t kept_stride = 0;  // at least the largest `keep`, but no more than `most` is needed
  index_t* counts = nullptr;     // out: [lane] how many stay
};

namespace detail {

// Keys of so many tokens wait in shared memory, 4 bytes each: 192 KiB. Longer lanes are read again
// from L2 or memory in each pass.
inline constexpr index_t most_keys_in_shared = 49152;

/// Grid: (lane). Each warp has a run of tiles; it keeps to it in all passes.
///
/// 256 threads: six blocks with lanes of 8192 tokens share a multiprocessor and hide each other's
/// waits. A long lane is alone there and takes 1024.
template <bool Stores, int Threads>
__global__ void __launch_bounds__(Threads, Threads == 256 ? 6 : 1)
    best_of_kernel(best_of_args const args) {
  extern __shared__ __align__(16) std::uint32_t stored_keys[];
  __shared__ best_of_shared shared;
  auto const lane = static_cast<index_t>(blockIdx.x);
  auto const thread = static_cast<index_t>(threadIdx.x);
  constexpr index_t warps = Threads / warp_threads;
  prompt_split const split(
      min(args.tokens(lane), args.most), args.keep(lane), args.first, args.newest);
  position_t* const kept = args.kept + lane * args.kept_stride;
  if (!split.chooses()) {  // only protected tokens stay, and it is known which
    for (index_t i = thread; i < split.keep; i += Threads) {
      kept[i] = split.protected_at(i);
    }
    if (thread == 0) args.counts[lane] = split.keep;
    return;
  }

  float const* const priorities = args.priorities + lane * args.stride;
  key_source<Stores> const keys{
      stored_keys, priorities, split, reinterpret_cast<std::uintptr_t>(priorities) % 16 == 0};
  index_t const tiles = (split.tokens + best_of_tile - 1) / best_of_tile;
  index_t const warp_tiles = (tiles + warps - 1) / warps;
  index_t const begin = min(tiles, warp_in_block() * warp_tiles) * best_of_tile;
  index_t const end = min(tiles, (warp_in_block() + 1) * warp_tiles) * best_of_tile;

  if constexpr (Stores) {
    __shared__ candidates_shared<Threads> candidates;
    if (keep_best_candidates(candidates, keys, begin, end, kept, args.newest_first)) {
      if (thread == 0) args.counts[lane] = split.keep;
      return;
    }
  }

  // -------------------------------------------------------- the threshold, from its highest digit
  for (index_t b = thread; b < 256; b += Threads) shared.bins[b] = 0;
  if (thread == 0) {
    shared.prefix = 0;
    shared.need = split.keep;
  }
  __syncthreads();
  find_digit<3>(shared, keys, begin, end);
  find_digit<2>(shared, keys, begin, end);
  find_digit<1>(shared, keys, begin, end);
  find_digit<0>(shared, keys, begin, end);
  std::uint32_t const threshold = shared.prefix;
  // A token that is never kept goes even if there is room; worse ones are NaN alone.
  index_t const equal_kept = threshold == key_of_keep_never ? 0 : shared.need;
  auto const better = [threshold](std::uint32_t key) {
    return key > threshold && key != key_of_keep_never;
  };

  // -------------------------------------------------------- how many stay before each warp's run
  index_t above = 0, equal = 0;
  for (index_t tile = begin; tile < end; tile += best_of_tile) {
    uint4 const four = keys(tile);
    above += (better(four.x) ? 1 : 0) + (better(four.y) ? 1 : 0) + (better(four.z) ? 1 : 0) +
             (better(four.w) ? 1 : 0);
    equal += (four.x == threshold ? 1 : 0) + (four.y == threshold ? 1 : 0) +
             (four.z == threshold ? 1 : 0) + (four.w == threshold ? 1 : 0);
  }
  above = __reduce_add_sync(whole_warp, above);
  equal = __reduce_add_sync(whole_warp, equal);
  if (lane_in_warp() == 0) {
    shared.above[warp_in_block()] = above;
    shared.equal[warp_in_block()] = equal;
  }
  __syncthreads();
  index_t equal_before = 0, equal_total = 0, place = 0;
  for (index_t w = 0; w < warps; ++w) {
    if (w == warp_in_block()) equal_before = equal_total;
    if (w < warp_in_block()) place += shared.above[w];
    equal_total += shared.equal[w];
  }
  if (thread == 0) {
    index_t all = equal_kept;
    for (index_t w = 0; w < warps; ++w) all += shared.above[w];
    args.counts[lane] = all;
  }
  // of equals the newest `equal_kept` stay, or the oldest
  index_t const first_kept = args.newest_first ? 0 : equal_total - equal_kept;
  auto const kept_among = [&](index_t equals) {  // of the first so many equals
    return min(max(equals - first_kept, 0), equal_kept);
  };
  place += kept_among(equal_before);

  // -------------------------------------------------------- positions, ascending
  unsigned const lower_lanes = (1U << lane_in_warp()) - 1U;
  for (index_t tile = begin; tile < end; tile += best_of_tile) {
    uint4 const four = keys(tile);
    std::uint32_t const key[4] = {four.x, four.y, four.z, four.w};
    unsigned stays = 0;  // bit c: token tile + 4 x thread + c
    index_t equals = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (better(key[c])) stays |= 1U << c;
      if (key[c] == threshold) ++equals;
    }
    if (__any_sync(whole_warp, equals > 0)) {  // rare, unless many priorities are equal
      index_t upto = equals;
#pragma unroll
      for (int step = 1; step < warp_threads; step *= 2) {
        index_t const other = __shfl_up_sync(whole_warp, upto, static_cast<unsigned>(step));
        if (lane_in_warp() >= step) upto += other;
      }
      index_t number = equal_before + upto - equals;
      equal_before += __shfl_sync(whole_warp, upto, warp_threads - 1);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (key[c] != threshold) continue;
        if (number >= first_kept && number < first_kept + equal_kept) stays |= 1U << c;
        ++number;
      }
    }
    index_t in_tile = 0, to = place;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      unsigned const lanes_with = __ballot_sync(whole_warp, (stays >> c & 1U) != 0);
      in_tile += __popc(lanes_with);
      to += __popc(lanes_with & lower_lanes);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if ((stays >> c & 1U) != 0) kept[to++] = tile + 4 * lane_in_warp() + c;
    }
    place += in_tile;
  }
}

}  // namespace detail

/// Chooses for each lane which tokens of its prompt stay, as `adore::select` does: in the order of
/// `adore::order_key`, protected ones last, `keep_never` always.
///
/// Policies that release whole blocks or relent need their own selection, on the host.
///
/// A lane is read once if it has at most 49152 tokens, otherwise six times. It is fastest where a
/// small part stays, some 250 tokens, and not many priorities are equal. Deterministic: integer
/// counts only, and a lane's result does not depend on the others.
///
/// @throws  std::invalid_argument naming the number that is wrong, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
inline void best_of_async(cudaStream_t stream, best_of_args const& args) {
  require_field(args.lanes >= 0, "best_of.lanes", args.lanes, "must not be negative");
  require_field(args.most >= 0 && args.most <= args.stride,
                "best_of.most",
                args.most,
                "must lie in [0, stride]");
  require_field(args.first >= 0, "best_of.first", args.first, "must not be negative");
  require_field(args.newest >= 0, "best_of.newest", args.newest, "must not be negative");
  if (args.tokens.each == nullptr) {
    require_field(args.tokens.all >= 0 && args.tokens.all <= args.most,
                  "best_of.tokens.all",
                  args.tokens.all,
                  "must lie in [0, most]");
  }
  if (args.keep.each == nullptr && args.lanes > 1) {  // else the device alone knows
    index_t const longest = std::min(args.keep.all, args.most);
    require_field(args.kept_stride >= longest,
                  "best_of.kept_stride",
                  args.kept_stride,
                  "must be at least what a lane keeps");
  }
  if (args.lanes == 0) return;
  require_pointer(args.priorities, "best_of.priorities");
  require_pointer(args.kept, "best_of.kept");
  require_pointer(args.counts, "best_of.counts");
  index_t const rounded =
      (args.most + detail::best_of_tile - 1) / detail::best_of_tile * detail::best_of_tile;
  constexpr int most_bytes = detail::most_keys_in_shared * sizeof(std::uint32_t);
  auto const launch = [&](auto* kernel, unsigned threads, std::size_t bytes) {
    // always the same, so that what a captured graph relies on stays true
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes));
    kernel<<<static_cast<unsigned>(args.lanes), threads, bytes, stream>>>(args);
    check(cudaGetLastError());
  };
  std::size_t const bytes = static_cast<std::size_t>(rounded) * sizeof(std::uint32_t);
  if (args.most <= 16384) {
    launch(detail::best_of_kernel<true, 256>, 256, bytes);
  } else if (args.most <= detail::most_keys_in_shared) {
    launch(detail::best_of_kernel<true, 1024>, 1024, bytes);
  } else {
    launch(detail::best_of_kernel<false, 1024>, 1024, 0);
  }
}

}  // namespace adore::gpu
