// SPDX-License-Identifier: Apache-2.0
// How much attention each slot received, from queries, keys and the log-sum-exp that an engine's
// own attention has left behind.
#pragma once

#include "adore/attention/attention_scale.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/live_slots.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/gpu/weights_tile.cuh"
#include "adore/invalid_field.hpp"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

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

/// Weights of all slots of all rows in one layer: the sum over a row's queries of query weight x
/// probability, reduced over the query heads of each KV head. 0 for slots that hold no token. Rows
/// without queries are left alone.
///
/// out[row, kv_head, slot] is what a policy's `observe` takes. `decide_async` takes it where
/// `max_new` is 1; of several queries it wants the weights of each, see `each_query`, since it may
/// accept a part of them. Query j sees the positions up to next + j. Sums are formed in a fixed
/// order that depends on shapes only. Logits must be scale x q.k of what the query sees by its
/// position, nothing added and nothing else hidden.
///
/// @param slots  `ledger_slots` or `filled_slots`
/// @param keys   K of the layer with the step's new tokens in it; 64, 96, 128 or 256 channels
/// @pre     at most 16 query heads per KV head
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for shapes
///          and memory that the kernel cannot read, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
/// Cost:    K is read once.
template <class T, live_slots Slots, kv_rows Keys>
void weights_async(cudaStream_t stream,
                   weights_args<T> const& args,
                   Slots const& slots,
                   Keys const& keys) {
  static_assert(std::is_same_v<element_of<Keys>, T>, "adore: q and K must have the same elements");
  auto const require_pointer = [](void const* pointer, char const* what) {
    if (pointer == nullptr) {
      throw std::invalid_argument(std::string("adore: weights.") + what + ": is null");
    }
  };
  require_same("weights", "q", "channels", args.q.channels, "the keys have", keys.channels);
  require_tokens("weights", "q", args.q.tokens, slots.rows() * slots.max_new());
  constexpr bool has_ledger = requires {
    slots.ledger;
  };
  if constexpr (has_ledger) {
    require_fits("weights", "keys", keys, slots.rows(), slots.ledger.kv_heads, slots.ledger.slots);
    require_field(slots.layer >= 0 && slots.layer < slots.ledger.layers,
                  "slots.layer",
                  slots.layer,
                  "the ledger has no such layer");
  } else {
    require_field(keys.sequences >= slots.rows(),
                  "keys.sequences",
                  keys.sequences,
                  "must be at least the rows of slots");
    if constexpr (std::is_same_v<Slots, filled_slots>) {
      require_pointer(slots.lengths, "slots.lengths");
    }
  }
  check_rows(keys, "keys");
  check_tokens(args.q, "q");
  if (slots.rows() == 0 || keys.kv_heads == 0 || keys.slots == 0) return;
  index_t const group = args.q.heads / keys.kv_heads;
  require_field(group >= 1 && group <= 16 && group * keys.kv_heads == args.q.heads,
                "q.heads",
                args.q.heads,
                "must be 1 to 16 times the number of KV heads");
  weights_args<T> with_defaults = args;
  with_defaults.scale = attention_scale_of(args.scale, keys.channels);
  if (args.out_stride == 0) {
    with_defaults.out_stride = keys.slots;
    if constexpr (has_ledger) with_defaults.out_stride = slots.ledger.stride;
  }
  index_t const most = std::min(slots.capacity(), keys.slots);
  if (with_defaults.out_stride < most) {
    throw std::invalid_argument(
        "adore: weights.out_stride = " + std::to_string(with_defaults.out_stride) +
        ": must be at least the " + std::to_string(most) + " slots");
  }
  require_pointer(args.lse, "lse");
  require_pointer(args.out, "out");
  if (args.each_query && args.query_weights != nullptr) {
    throw std::invalid_argument(
        "adore: weights.query_weights: must be null where each query's weights are asked for");
  }
  dim3 const grid(static_cast<unsigned>((most + detail::block_slots - 1) / detail::block_slots),
                  static_cast<unsigned>(keys.kv_heads),
                  static_cast<unsigned>(slots.rows()));
  auto const launch = [&]<int Channels>() {
    auto const with = [&](auto* kernel) {
      kernel<<<grid, detail::weight_warps * warp_threads, 0, stream>>>(
          with_defaults, slots, keys, detail::query_columns(group));
      check(cudaGetLastError());
    };
    if (args.each_query) {
      with(detail::weights_kernel<true, T, Channels, Slots, Keys>);
    } else {
      with(detail::weights_kernel<false, T, Channels, Slots, Keys>);
    }
  };
  switch (keys.channels) {
    case 64:
      return launch.template operator()<64>();
    case 96:
      return launch.template operator()<96>();
    case 128:
      return launch.template operator()<128>();
    case 256:
      return launch.template operator()<256>();
    default:
      require_field(
          false, "keys.channels", keys.channels, "weights are formed for 64, 96, 128 or 256");
  }
}

}  // namespace adore::gpu
