// SPDX-License-Identifier: Apache-2.0
// Puts a layer's new K and V into the slots that the ledger has reserved for them.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/invalid_field.hpp"
#include "adore/kv_view.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace adore::gpu {
namespace detail {

// A warp moves K and V of one KV head of one token at a time: 128 channels of 16-bit elements are
// one chunk per thread. Eight warps: 64 rows of 32 heads are then 256 blocks, all at once on the
// device, and a model of 8 KV heads leaves no warp idle.
inline constexpr int append_warps = 8;

/// Grid: (token, group of KV heads).
template <eviction_policy P, kv_rows Keys, kv_rows Values, class T>
__global__ void __launch_bounds__(append_warps* warp_threads)
    append_kernel(ledger_view<P> const ledger,
                  index_t const layer,
                  Keys const keys,
                  Values const values,
                  token_view<T const> const k,
                  token_view<T const> const v) {
  auto const token = static_cast<index_t>(blockIdx.x);
  index_t const head = static_cast<index_t>(blockIdx.y) * append_warps + warp_in_block();
  if (head >= k.heads) return;
  index_t const row = token / ledger.max_new;
  index_t const j = token - row * ledger.max_new;
  // Everything is asked for at once, also for a token that does not come: a round trip to memory
  // takes as long as moving the bytes. Where a step brings one token, its slot does not depend on
  // what the books say.
  row_books const* const books = ledger.rows + row;
  index_t const count = load_early_4(&books->count);
  index_t const place = ledger.max_new == 1 ? 0 : (load_early_4(&books->next) + j) % ledger.max_new;
  index_t const lane = ledger.lane(row, layer, head);
  // -1 where the lane had no room: the decision has counted that, and the token is lost
  index_t const slot =
      load_early_4(ledger.new_slots + static_cast<std::int64_t>(lane) * ledger.max_new + place);
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));
  index_t const chunks = chunks_of<T>(k.channels);
  auto const channel_of = [&](index_t i) { return (i < chunks ? i : i - chunks) * per_chunk; };
  auto const load = [&](index_t i) {
    return load_early_16((i < chunks ? k(token, head) : v(token, head)) + channel_of(i));
  };
  index_t i = lane_in_warp();
  if (i < 2 * chunks) {
    uint4 chunk = load(i);
    for (;;) {
      if (j < count && slot >= 0) {
        T* const to = i < chunks ? keys(row, head, slot) : values(row, head, slot);
        *reinterpret_cast<uint4*>(to + channel_of(i)) = chunk;
      }
      i += warp_threads;
      if (i >= 2 * chunks) break;
      chunk = load(i);
    }
  }
}

/// Refuses K and V that cannot be put into a layer's slots.
///
/// @param stage  of whom, for messages
/// @throws std::logic_error, std::invalid_argument
template <eviction_policy P, kv_rows Keys, kv_rows Values>
void check_append(char const* stage,
                  ledger_view<P> const& ledger,
                  index_t layer,
                  Keys const& keys,
                  Values const& values,
                  token_view<element_of<Keys> const> k,
                  token_view<element_of<Keys> const> v) {
  static_assert(std::is_same_v<typename Keys::value_type, typename Values::value_type> &&
                    !std::is_const_v<typename Keys::value_type>,
                "adore: append writes K and V, which must have the same element type");
  require_field(
      layer >= 0 && layer < ledger.layers, "layer", layer, "the ledger has no such layer");
  require_fits(stage, "keys", keys, ledger.row_count, ledger.kv_heads, ledger.slots);
  require_fits(stage, "values", values, ledger.row_count, ledger.kv_heads, ledger.slots);
  auto const check_new = [&](char const* what, auto const& given) {
    require_same(stage, what, "heads", given.heads, "the ledger has", ledger.kv_heads);
    require_same(stage, what, "channels", given.channels, "keys have", keys.channels);
    check_tokens(given, what);
  };
  check_new("k", k);
  check_new("v", v);
  require_same(stage, "values", "channels", values.channels, "keys have", keys.channels);
  check_rows(keys, "keys");
  check_rows(values, "values");
}

}  // namespace detail

/// Puts the step's K and V of a layer into their slots, for engines that keep their own attention.
///
/// @param keys, values  of the layer, [sequence, kv_head, slot, channel]
/// @param k, v          [token, kv_head, channel], padded: token row * max_new + j is the j-th new
///                      one of a row, j < count; others are read, but not used
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///          that cannot be read in chunks of 16 bytes, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
template <eviction_policy P, kv_rows Keys, kv_rows Values>
void append_async(cudaStream_t stream,
                  ledger_view<P> const& ledger,
                  index_t layer,
                  Keys const& keys,
                  Values const& values,
                  token_view<element_of<Keys> const> k,
                  token_view<element_of<Keys> const> v) {
  detail::check_append("append", ledger, layer, keys, values, k, v);
  index_t const tokens = ledger.row_count * ledger.max_new;
  require_tokens("append", "k", k.tokens, tokens);
  require_tokens("append", "v", v.tokens, tokens);
  if (tokens == 0 || k.heads == 0) return;

  dim3 const grid(
      static_cast<unsigned>(tokens),
      static_cast<unsigned>((k.heads + detail::append_warps - 1) / detail::append_warps));
  detail::append_kernel<<<grid, detail::append_warps * warp_threads, 0, stream>>>(
      ledger, layer, keys, values, k, v);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
