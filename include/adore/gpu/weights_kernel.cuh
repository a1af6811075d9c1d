// SPDX-License-Identifier: Apache-2.0
// The kernel that forms weights from queries, keys and log-sum-exp, and what it is given.
#pragma once

#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/live_slots.cuh"
#include "adore/gpu/matrix_unit.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/gpu/weights_tile.cuh"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu {

/// Queries of a step, what their attention summed up to, and where the weights go.
///
/// @tparam T  float, __half or __nv_bfloat16
template <class T>
struct weights_args {
  token_view<T const> q;       // [token, head, channel], padded: token row * max_new + j
  float const* lse = nullptr;  // [token, head] natural logarithm of the sum of exp(scale x q.k)
  float scale = 0.0F;          // of the logits; 0: 1 / sqrt(channels)
  float const* query_weights = nullptr;  // [max_new] factor by later queries of the row; nullptr: 1
  gqa_reduction reduction = gqa_reduction::sum;
  float* out = nullptr;  // [row, kv_head, out_stride], summed over the row's queries; or
  /// ... [row, kv_head, j, out_stride], j < max_new: those of each query, as `decide_async` takes
  /// them.
  bool each_query = false;
  /// At least the slots; 0: the ledger's stride, as `decide_async` takes them, or K's slots if
  /// there is no ledger.
  std::int64_t out_stride = 0;
};

namespace detail {

// A warp forms the weights of 16 slots, all queries of the row; the slots' keys are in registers,
// so they are read once. Four warps per block: a lane of 200 slots leaves only 56 of 256 idle, and
// blocks of one lane share the queries in L1.
inline constexpr int weight_warps = 4;
inline constexpr index_t block_slots = weight_warps * weight_tile_slots;

/// Grid: (block of slots, KV head, row).
template <bool EachQuery, class T, int Channels, live_slots Slots, kv_rows Keys>
__global__ void __launch_bounds__(weight_warps* warp_threads) weights_kernel(
    weights_args<T> const args, Slots const slots, Keys const keys, query_columns const columns) {
  using unit = matrix_unit<T>;
  constexpr float log2_e = 1.4426950408889634F;
  constexpr int chunks = Channels * static_cast<int>(sizeof(T)) / 64;
  static_assert(Channels * static_cast<int>(sizeof(T)) % 64 == 0);
  // Keys of a kilobyte do not fit into registers: their parts are read again, from L2, for every
  // eight queries.
  constexpr bool held = chunks <= 8;
  constexpr int part = held ? chunks : 4;
  static_assert(chunks % part == 0);
  constexpr int together = 4;  // chunks of a query that are read before the first is waited for
  int const g = lane_in_warp() / 4;
  int const t = lane_in_warp() % 4;
  auto const head = static_cast<index_t>(blockIdx.y);
  auto const row = static_cast<index_t>(blockIdx.z);
  index_t const token = row * slots.max_new();
  index_t const first =
      static_cast<index_t>(blockIdx.x) * block_slots + warp_in_block() * weight_tile_slots;
  index_t const most = min(slots.capacity(), keys.slots);
  if (first >= most) return;

  // All that says which slots are live is read at once, before anything is decided by it. Slots
  // without a token read a query instead of a key, whose product nobody looks at: a free slot's
  // bytes stay out, and loads need no condition.
  query_run const run = slots.queries(row);
  position_t position[2];  // of the slots g and g + 8
  char const* from[2];     // their keys
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    index_t const slot = first + g + 8 * r;
    position_t const p = slot < most ? slots.position(row, head, slot) : no_position;
    bool const live = p >= 0 && p < run.next + run.count;
    position[r] = live ? p : no_position;
    from[r] = reinterpret_cast<char const*>(live ? keys(row, head, slot)
                                                 : args.q(token, head * columns.group));
  }
  float* const out = args.out + (static_cast<std::int64_t>(row) * keys.kv_heads + head) *
                                    args.out_stride * (EachQuery ? slots.max_new() : 1);
  auto const put = [&](index_t j, int r, float weight) {
    index_t const slot = first + g + 8 * r;
    if (args.reduction == gqa_reduction::mean) weight /= static_cast<float>(columns.group);
    if (slot < most) out[j * args.out_stride + slot] = weight;
  };
  float weight[2] = {0.0F, 0.0F};  // of the slots g and g + 8, from this thread's columns
  if (__any_sync(whole_warp, position[0] >= 0 || position[1] >= 0) && run.count > 0) {
    keys_in_registers<part> own_keys;
    if (held) own_keys.load(from, 0, t);

    float begun[2] = {0.0F, 0.0F};  // of a query that goes on in the next tile
    index_t const tiles = columns.tiles(run.count);
    for (index_t tile = 0; tile < tiles; ++tile) {
      float factor[2], lse[2];
      position_t sees[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        index_t const column = tile * weight_tile_queries + 2 * t + e;
        index_t const j = columns.query(column);
        index_t const h = columns.head(column);
        bool const exists = j < run.count && h < columns.group;
        factor[e] = !exists ? 0.0F
                    : EachQuery || args.query_weights == nullptr
                        ? 1.0F
                        : args.query_weights[run.count - 1 - j];
        sees[e] = run.next + j;
        lse[e] = factor[e] == 0.0F ? 0.0F
                                   : args.lse[static_cast<std::int64_t>(token + j) * args.q.heads +
                                              head * columns.group + h];
      }
      if (!__any_sync(whole_warp, factor[0] != 0.0F || factor[1] != 0.0F)) continue;

      index_t const column = tile * weight_tile_queries + g;
      bool const exists = columns.query(column) < run.count && columns.head(column) < columns.group;
      char const* const query =
          reinterpret_cast<char const*>(exists ? args.q(token + columns.query(column),
                                                        head * columns.group + columns.head(column))
                                               : nullptr);
      float scores[4] = {};
#pragma unroll
      for (int first_chunk = 0; first_chunk < chunks; first_chunk += part) {
        if (!held) own_keys.load(from, first_chunk, t);
#pragma unroll
        for (int begin = 0; begin < part; begin += together) {
          uint4 q[together];
#pragma unroll
          for (int c = 0; c < together; ++c) {
            q[c] = {0, 0, 0, 0};
            if (exists && begin + c < part) {
              q[c] =
                  *reinterpret_cast<uint4 const*>(query + 64 * (first_chunk + begin + c) + 16 * t);
            }
          }
#pragma unroll
          for (int c = 0; c < together && begin + c < part; ++c) {
            uint4 const a = own_keys.words[0][begin + c];
            uint4 const b = own_keys.words[1][begin + c];
            unit::multiply(scores, a.x, b.x, a.y, b.y, q[c].x, q[c].y);
            unit::multiply(scores, a.z, b.z, a.w, b.w, q[c].z, q[c].w);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float p[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          bool const counts = factor[e] != 0.0F && position[r] >= 0 && position[r] <= sees[e];
          float const logit = scores[2 * r + e] * args.scale - lse[e];
          p[e] = counts ? exp2_fast(logit * log2_e) : 0.0F;
        }
        bool const is_max = args.reduction == gqa_reduction::max;
        if (columns.bits == 0 && EachQuery) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            index_t const j = tile * weight_tile_queries + 2 * t + e;
            if (j < run.count) put(j, r, p[e]);
          }
          continue;
        }
        if (!EachQuery && (!is_max || columns.bits == 0)) {
          weight[r] += factor[0] * p[0] + factor[1] * p[1];
          continue;
        }
        // neighbours in a column pair, then threads, then tiles belong to the same query
        auto const both = [is_max](float a, float b) { return is_max ? fmaxf(a, b) : a + b; };
        float joined = both(p[0], p[1]);
        for (int step = 1; step < (1 << columns.bits) / 2 && step < 4; step *= 2) {
          joined = both(joined, __shfl_xor_sync(whole_warp, joined, step));
        }
        bool const whole = columns.bits < 4 || tile % 2 == 1;  // the query ends in this tile
        joined = both(joined, begun[r]);
        begun[r] = whole ? 0.0F : joined;
        bool const leads = t % (columns.bits < 3 ? (1 << columns.bits) / 2 : 4) == 0;
        if (!whole || !leads) continue;
        if constexpr (EachQuery) {
          index_t const j = columns.query(tile * weight_tile_queries + 2 * t);
          if (j < run.count) put(j, r, joined);
        } else {
          weight[r] += factor[0] * joined;
        }
      }
    }
  } else if (EachQuery && t == 0) {
    for (index_t j = 0; j < run.count; ++j) {
      put(j, 0, 0.0F);
      put(j, 1, 0.0F);
    }
  }
  if constexpr (!EachQuery) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weight[r] += __shfl_xor_sync(whole_warp, weight[r], 1);
      weight[r] += __shfl_xor_sync(whole_warp, weight[r], 2);
      if (t == 0 && run.count > 0) put(0, r, weight[r]);
    }
  }
}

}  // namespace detail

}  // namespace adore::gpu
