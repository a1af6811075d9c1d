// SPDX-License-Identifier: Apache-2.0
// What one block does when K or V of a lane are compacted: a slice of every slot's channels goes
// through shared memory, by a gather or by a product with a 0/1 matrix.
#pragma once

#include "adore/gpu/compaction_order.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

inline constexpr int compact_threads = 256;

/// A block moves a slice of one KV head, `chunks` pieces of 16 bytes of every slot: it reads all of
/// them before it writes any, so that lanes are compacted in place.
struct slice_plan {
  index_t chunks = 1;     // a power of two, so that threads find their piece without a division
  bool in_shared = true;  // where a slice waits; otherwise in the workspace
  constexpr index_t slices(index_t row_chunks) const { return (row_chunks + chunks - 1) / chunks; }
};

inline constexpr int most_slice_bytes = 200 << 10;

/// Slices of at most 64 KiB, that three blocks fit on a multiprocessor, but of no less than 32
/// bytes of a row, what memory moves at once; up to 200 KiB if that is not possible.
constexpr slice_plan plan_slices(index_t slots, index_t row_chunks) {
  constexpr std::int64_t wanted = (64 << 10) / chunk_bytes;
  constexpr std::int64_t most = most_slice_bytes / chunk_bytes;
  slice_plan plan{power_of_two_from(row_chunks), true};
  while (plan.chunks > 2 && std::int64_t{slots} * plan.chunks > wanted) plan.chunks /= 2;
  if (std::int64_t{slots} * plan.chunks <= most) return plan;
  if (slots <= most) return {1, true};
  return {2, false};
}
ADORE_HOST_DEVICE constexpr index_t slots_in_tiles(index_t slots) {
  return (slots + 15) / 16 * 16;
}

/// One lane's part in one layer and KV head.
struct lane_move {
  index_t const* order;  // [kept] slot of the token that goes to place i
  index_t kept, extent;
};

/// What a block of the compaction works on: `Rows` is the view of K or V.
template <kv_rows Rows>
struct lane_slice {
  Rows rows;
  index_t row, head, first_chunk, chunks, bits;  // chunks of the slice, of which 2^bits have room
  uint4* stage;                                  // [slot or place, 2^bits]

  __device__ uint4* at(index_t slot, index_t c) const {
    return reinterpret_cast<uint4*>(rows(row, head, slot)) + first_chunk + c;
  }
};

/// place[i] = row[order[i]]: what lies where it belongs is left alone.
template <kv_rows Rows>
__device__ void gather_slice(lane_slice<Rows> const& slice, lane_move const& lane) {
  constexpr index_t together = 4;  // reads under way before the first is waited for
  index_t const pieces = lane.kept << slice.bits;
  auto const for_pieces = [&](auto&& action) {
    for (index_t begin = static_cast<index_t>(threadIdx.x); begin < pieces;
         begin += together * compact_threads) {
      action(begin);
    }
  };
  auto const moves = [&](index_t piece, index_t& from, index_t& c) {
    if (piece >= pieces) return false;
    c = piece & ((1 << slice.bits) - 1);
    from = lane.order[piece >> slice.bits];
    return c < slice.chunks && from != piece >> slice.bits;
  };
  index_t from = 0, c = 0;
  for_pieces([&](index_t begin) {
    uint4 chunks[together];
#pragma unroll
    for (int n = 0; n < together; ++n) {
      chunks[n] = {0, 0, 0, 0};
      if (moves(begin + n * compact_threads, from, c)) chunks[n] = *slice.at(from, c);
    }
#pragma unroll
    for (int n = 0; n < together; ++n) {
      index_t const piece = begin + n * compact_threads;
      if (piece < pieces) slice.stage[piece] = chunks[n];
    }
  });
  __syncthreads();
  for_pieces([&](index_t begin) {
#pragma unroll
    for (int n = 0; n < together; ++n) {
      index_t const piece = begin + n * compact_threads;
      if (moves(piece, from, c)) *slice.at(piece >> slice.bits, c) = slice.stage[piece];
    }
  });
}

/// Rows that keep no token count as zeros: what was left in free slots, perhaps no number, must not
/// meet the product's zeros.
template <kv_rows Rows>
__device__ void stage_lane(lane_slice<Rows> const& slice, lane_move const& lane) {
  index_t const width = 1 << slice.bits;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < slots_in_tiles(lane.extent) * width;
       i += compact_threads) {
    slice.stage[i] = {0, 0, 0, 0};
  }
  __syncthreads();
  for (index_t i = static_cast<index_t>(threadIdx.x); i < lane.kept * width; i += compact_threads) {
    index_t const c = i & (width - 1);
    index_t const slot = lane.order[i >> slice.bits];
    if (c < slice.chunks) slice.stage[(slot << slice.bits) + c] = *slice.at(slot, c);
  }
  __syncthreads();
}

/// K' = S K with S[i][order[i]] = 1 on the tensor cores: 16 places x 8 channels x 16 slots at once.
template <kv_rows Rows>
__device__ void multiply_slice(lane_slice<Rows> const& slice, lane_move const& lane) {
  using T = typename Rows::value_type;
  static_assert(sizeof(T) == 2);
  constexpr unsigned one = std::is_same_v<T, __half> ? 0x3C00U : 0x3F80U;
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));  // 8 channels
  stage_lane(slice, lane);
  auto const* const stage = reinterpret_cast<std::uint16_t const*>(slice.stage);
  index_t const width = per_chunk << slice.bits;  // channels of a staged row
  int const g = lane_in_warp() / 4;
  int const t = lane_in_warp() % 4;
  // S[i][s] and S[i][s + 1] of a row whose one is at `at`
  auto const pair_at = [](index_t at, index_t s) {
    return at == s ? one : at == s + 1 ? one << 16U : 0U;
  };
  for (index_t first = warp_in_block() * 16; first < lane.kept;
       first += compact_threads / warp_threads * 16) {
    index_t const upper = first + g < lane.kept ? lane.order[first + g] : -1;
    index_t const lower = first + g + 8 < lane.kept ? lane.order[first + g + 8] : -1;
    for (index_t c = 0; c < slice.chunks; ++c) {
      float sums[4] = {};
      for (index_t s = 2 * t; s < lane.extent + 2 * t; s += 16) {
        auto const pair_of = [&](index_t slot) -> unsigned {
          std::uint16_t const* const x = stage + slot * width + c * per_chunk + g;
          return x[0] | static_cast<unsigned>(x[width]) << 16U;
        };
        matrix_unit<T>::multiply(sums,
                                 pair_at(upper, s),
                                 pair_at(lower, s),
                                 pair_at(upper, s + 8),
                                 pair_at(lower, s + 8),
                                 pair_of(s),
                                 pair_of(s + 8));
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        index_t const place = first + g + 8 * r;
        if (place < lane.kept) {
          reinterpret_cast<unsigned*>(slice.at(place, c))[t] =
              matrix_unit<T>::pack(sums[2 * r], sums[2 * r + 1]);
        }
      }
    }
  }
}

/// The same product for 32-bit elements, whose exact sum the tensor cores do not form.
template <kv_rows Rows>
__device__ void multiply_slice_in_float(lane_slice<Rows> const& slice, lane_move const& lane) {
  stage_lane(slice, lane);
  index_t const width = 1 << slice.bits;
  for (index_t i = static_cast<index_t>(threadIdx.x); i < lane.kept * width; i += compact_threads) {
    index_t const c = i & (width - 1);
    if (c >= slice.chunks) continue;
    index_t const at = lane.order[i >> slice.bits];
    float4 sum{0.0F, 0.0F, 0.0F, 0.0F};
    for (index_t s = 0; s < lane.extent; ++s) {
      float const factor = s == at ? 1.0F : 0.0F;
      float4 const x = reinterpret_cast<float4 const*>(slice.stage)[(s << slice.bits) + c];
      sum.x += factor * x.x;
      sum.y += factor * x.y;
      sum.z += factor * x.z;
      sum.w += factor * x.w;
    }
    *reinterpret_cast<float4*>(slice.at(i >> slice.bits, c)) = sum;
  }
}

}  // namespace adore::gpu::detail
