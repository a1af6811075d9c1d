// SPDX-License-Identifier: Apache-2.0
// Puts K and V of a prompt's tokens into the slots that `device_prompt` has chosen for them.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/append.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/invalid_field.hpp"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

namespace adore::gpu {
namespace detail {

inline constexpr int prompt_warps = 8;

/// Grid: (block of slots, KV head); a warp per slot.
template <eviction_policy P, kv_rows Keys, kv_rows Values, class T>
__global__ void append_prompt_kernel(ledger_view<P> const ledger,
                                     index_t const layer,
                                     index_t const row,
                                     Keys const keys,
                                     Values const values,
                                     token_view<T const> const k,
                                     token_view<T const> const v) {
  auto const head = static_cast<index_t>(blockIdx.y);
  index_t const slot = static_cast<index_t>(blockIdx.x) * prompt_warps + warp_in_block();
  if (slot >= ledger.slots) return;
  position_t const p = ledger.positions[ledger.cell(ledger.lane(row, layer, head)) + slot];
  if (p < 0 || p >= ledger.rows[row].next || p >= k.tokens) return;
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));
  for (index_t i = lane_in_warp(); i < chunks_of<T>(k.channels); i += warp_threads) {
    auto const copy = [&](T* to, T const* from) {
      *reinterpret_cast<uint4*>(to + i * per_chunk) =
          *reinterpret_cast<uint4 const*>(from + i * per_chunk);
    };
    copy(keys(row, head, slot), k(p, head));
    copy(values(row, head, slot), v(p, head));
  }
}

}  // namespace detail

/// Copies K and V of the prompt's tokens that a row has kept into their slots of a layer.
///
/// @param k, v  [token, kv_head, channel] of the prompt
/// @pre    the layer's lanes have entered; in the same row nothing has been released since
/// @throws std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///         that cannot be read in chunks of 16 bytes, cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P, kv_rows Keys, kv_rows Values>
void append_prompt_async(cudaStream_t stream,
                         ledger_view<P> const& ledger,
                         index_t layer,
                         index_t row,
                         Keys const& keys,
                         Values const& values,
                         token_view<element_of<Keys> const> k,
                         token_view<element_of<Keys> const> v) {
  detail::check_append("append_prompt", ledger, layer, keys, values, k, v);
  require_field(row >= 0 && row < ledger.row_count, "row", row, "the ledger has no such row");
  require_same("append_prompt", "v", "tokens", v.tokens, "k has", k.tokens);
  if (k.tokens == 0 || ledger.slots == 0) return;
  dim3 const grid(
      static_cast<unsigned>((ledger.slots + detail::prompt_warps - 1) / detail::prompt_warps),
      static_cast<unsigned>(ledger.kv_heads));
  detail::append_prompt_kernel<<<grid, detail::prompt_warps * warp_threads, 0, stream>>>(
      ledger, layer, row, keys, values, k, v);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
