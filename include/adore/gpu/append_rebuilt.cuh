// SPDX-License-Identifier: Apache-2.0
// Puts K and V of tokens that are computed again into their slots.
#pragma once

#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/kv_view.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// The tokens that are computed again in a step, whichever rows they are of; device memory.
struct rebuilt_tokens {
  index_t const* rows = nullptr;          // [i]; -1: nobody
  position_t const* positions = nullptr;  // [i]; -1: nobody
  index_t const* slots = nullptr;         // [i] of the row's lane
  index_t count = 0;
};

namespace detail {

/// Grid: (i, group of KV heads); a warp moves K and V of one head.
template <kv_rows Keys, kv_rows Values, class T>
__global__ void append_rebuilt_kernel(rebuilt_tokens const tokens,
                                      Keys const keys,
                                      Values const values,
                                      token_view<T const> const k,
                                      token_view<T const> const v) {
  auto const i = static_cast<index_t>(blockIdx.x);
  index_t const row = tokens.rows[i];
  if (row < 0) return;
  index_t const slot = tokens.slots[i];
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));
  index_t const chunks = chunks_of<T>(k.channels);
  auto const head = static_cast<index_t>(blockIdx.y) * warps_in_block() + warp_in_block();
  if (head >= k.heads) return;
  for (index_t c = lane_in_warp(); c < 2 * chunks; c += warp_threads) {
    bool const of_key = c < chunks;
    index_t const channel = (of_key ? c : c - chunks) * per_chunk;
    T const* const from = (of_key ? k(i, head) : v(i, head)) + channel;
    T* const to = (of_key ? keys(row, head, slot) : values(row, head, slot)) + channel;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(from);
  }
}

}  // namespace detail

/// Before the layer's attention.
///
/// @param keys, values  of the layer, [row, kv_head, slot, channel]
/// @param k, v          [i, kv_head, channel]
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///          that cannot be read in chunks of 16 bytes, cuda_error
/// Stream:  asynchronous, capturable. Memory: none.
template <kv_rows Keys, kv_rows Values>
void append_rebuilt_async(cudaStream_t stream,
                          rebuilt_tokens const& tokens,
                          Keys const& keys,
                          Values const& values,
                          token_view<element_of<Keys> const> k,
                          token_view<element_of<Keys> const> v) {
  if (tokens.count == 0) return;
  for (auto const* const of_step : {&k, &v}) {
    require_same("append_rebuilt", "k and v", "heads", of_step->heads, "keys have", keys.kv_heads);
    require_same(
        "append_rebuilt", "k and v", "channels", of_step->channels, "keys have", keys.channels);
    require_same("append_rebuilt", "k and v", "tokens", of_step->tokens, "there are", tokens.count);
    check_tokens(*of_step, "k or v");
  }
  check_rows(keys, "keys");
  check_rows(values, "values");
  constexpr index_t warps = 8;
  dim3 const grid(static_cast<unsigned>(tokens.count),
                  static_cast<unsigned>((k.heads + warps - 1) / warps));
  detail::append_rebuilt_kernel<<<grid, warps * warp_threads, 0, stream>>>(
      tokens, keys, values, k, v);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
