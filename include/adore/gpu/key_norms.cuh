// SPDX-License-Identifier: Apache-2.0
// How long a step's new keys are, for policies that score keys.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace adore::gpu {
namespace detail {

inline constexpr int measure_warps = 8;

/// The squared norm of a key; all threads of the warp call and learn it. Always summed in this
/// order.
template <class T>
__device__ __forceinline__ float squared_norm_in_warp(T const* key, index_t channels) {
  float squares = 0.0F;
  for (index_t c = lane_in_warp(); c < channels; c += warp_threads) {
    auto const x = static_cast<float>(key[c]);
    squares += x * x;
  }
  for (int width = 1; width < warp_threads; width *= 2) {
    squares += __shfl_xor_sync(whole_warp, squares, width);
  }
  return squares;
}

/// Grid: (token, group of KV heads); a warp per key.
template <eviction_policy P, class T>
__global__ void __launch_bounds__(measure_warps* warp_threads)
    measure_keys_kernel(ledger_view<P> const ledger,
                        token_view<T const> const k,
                        float* const key_norms) {
  auto const token = static_cast<index_t>(blockIdx.x);
  index_t const head = static_cast<index_t>(blockIdx.y) * measure_warps + warp_in_block();
  index_t const row = token / ledger.max_new, j = token % ledger.max_new;
  if (head >= k.heads || j >= ledger.rows[row].count) return;
  float const norm = squared_norm_in_warp(k(token, head), k.channels);
  if (lane_in_warp() == 0) key_norms[(row * k.heads + head) * ledger.max_new + j] = norm;
}

}  // namespace detail

/// Squared norms of a layer's new keys, as `attend_async` and `decide_async` take them. Rotation
/// leaves norms as they are but for rounding, which breaks ties: measure before it to decide as the
/// host does.
///
/// @param k          [token, kv_head, channel], padded: token row * max_new + j
/// @param key_norms  [row, kv_head, j], j < the row's count; others are left alone
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///          whose channels do not lie side by side, cuda_error if the launch fails
/// Stream:  asynchronous, capturable.  Memory: none.
template <eviction_policy P, class T>
void measure_keys_async(cudaStream_t stream,
                        ledger_view<P> const& ledger,
                        token_view<T> k,
                        float* key_norms) {
  index_t const tokens = ledger.row_count * ledger.max_new;
  require_same("measure_keys", "k", "heads", k.heads, "the ledger has", ledger.kv_heads);
  require_tokens("measure_keys", "k", k.tokens, tokens);
  check_tokens(k, "k");
  if (key_norms == nullptr) throw std::logic_error("adore: measure_keys: key_norms is null");
  if (tokens == 0 || k.heads == 0) return;
  dim3 const grid(
      static_cast<unsigned>(tokens),
      static_cast<unsigned>((k.heads + detail::measure_warps - 1) / detail::measure_warps));
  detail::measure_keys_kernel<P, std::remove_const_t<T>>
      <<<grid, detail::measure_warps * warp_threads, 0, stream>>>(ledger, k, key_norms);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
