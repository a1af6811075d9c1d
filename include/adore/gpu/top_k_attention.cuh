// SPDX-License-Identifier: Apache-2.0
// Decode attention in which each query attends its strongest keys only: the bound that policies are
// compared with, exact and simple, not fast.
#pragma once

#include "adore/attention/attention_scale.hpp"
#include "adore/concepts.hpp"
#include "adore/gpu/append.cuh"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/top_k_block.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace adore::gpu {
namespace detail {

template <class T, int Channels, class P, class View>
__global__ void __launch_bounds__(top_k_warps* warp_threads)
    top_k_kernel(__grid_constant__ attend_args<T, View> const args,
                 __grid_constant__ ledger_view<P> const ledger,
                 __grid_constant__ P const policy) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  using block = top_k_block<T, Channels, P, View>;
  __shared__ typename block::shared_memory shared;
  block(args, ledger, policy, reinterpret_cast<float*>(dynamic), shared).attend();
}

}  // namespace detail

/// Appends, attends each query's strongest keys and, in scope kv_head, decides: three launches for
/// one layer of all rows. Takes the shapes that decode_attention.cuh takes.
///
/// @throws std::logic_error if shapes do not fit together, std::invalid_argument for memory that
///         cannot be read in chunks of 16 bytes, for lanes that do not fit into shared memory
///         (about 28,000 slots), or of scope kv_head if all heads of a layer agree on a set;
///         cuda_error
/// Stream: asynchronous, capturable. Memory: none but shared memory.
template <int Channels, index_t MostQueryRows = 256, eviction_policy P, class T, class View>
  requires limits_attention<P>
void attend_async(cudaStream_t stream,
                  attend_args<T, View, no_guests> args,
                  ledger_view<P> const& ledger,
                  P const& policy) {
  static_assert(!scores_keys<P>,
                "adore::gpu: a policy that looks at keys cannot limit attention as well");
  detail::check_attention(args, ledger, Channels);
  if (ledger.row_count == 0) return;
  top_k_scope const agreed = policy.attention_limit().scope;
  if (agreed == top_k_scope::layer && ledger.reach == scope::kv_head) {
    throw std::invalid_argument(
        "adore: heads that agree on one set need lanes of scope layer or model");
  }
  args.scale = attention_scale_of(args.scale, Channels);
  auto* const kernel = detail::top_k_kernel<T, Channels, P, View>;
  std::size_t const bytes = 2 * sizeof(float) * static_cast<std::size_t>(ledger.slots);
  constexpr std::size_t of_block = detail::most_dynamic_bytes(
      sizeof(typename detail::top_k_block<T, Channels, P, View>::shared_memory));
  if (bytes > of_block) {
    throw std::invalid_argument(
        "adore: attend_async: " + std::to_string(ledger.slots) + " slots need " +
        std::to_string(bytes) +
        " bytes of shared memory to choose the strongest keys, a block has " +
        std::to_string(of_block));
  }
  // always the same, so that what a captured graph, or another thread, relies on stays true
  check(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(of_block)));
  append_async(stream, ledger, args.layer, args.keys, args.values, args.k, args.v);
  dim3 const grid(static_cast<unsigned>(agreed == top_k_scope::layer ? 1 : ledger.kv_heads),
                  static_cast<unsigned>(ledger.max_new),
                  static_cast<unsigned>(ledger.row_count));
  kernel<<<grid, detail::top_k_warps * warp_threads, bytes, stream>>>(args, ledger, policy);
  check(cudaGetLastError());
  if (args.decides && ledger.reach == scope::kv_head) {
    decide_async(stream, ledger, policy, args.layer, {.weights = args.weights});
  }
}

}  // namespace adore::gpu
