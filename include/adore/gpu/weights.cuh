// SPDX-License-Identifier: Apache-2.0
// How much attention each slot received, from queries, keys and the log-sum-exp that an engine's
// own attention has left behind.
#pragma once

#include "adore/attention/attention_scale.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/live_slots.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/gpu/weights_kernel.cuh"
#include "adore/gpu/weights_tile.cuh"
#include "adore/invalid_field.hpp"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {

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
      require_pointer(slots.lengths, "weights.slots.lengths");
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
  require_pointer(args.lse, "weights.lse");
  require_pointer(args.out, "weights.out");
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
