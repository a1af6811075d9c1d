// SPDX-License-Identifier: Apache-2.0
// Moves kept tokens together in K and V on the device: not at all, by a gather, or by the paper's
// matrix product.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/compact.hpp"
#include "adore/gpu/compaction_order.cuh"
#include "adore/gpu/compaction_slice.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/invalid_field.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace adore::gpu {
namespace detail {

/// Grid: (row and KV head, slice, K or V).
template <bool Multiplies, eviction_policy P, kv_rows Keys, kv_rows Values>
__global__ void __launch_bounds__(compact_threads, Multiplies ? 1 : 3)
    compact_kernel(ledger_view<P> const ledger,
                   compaction_order const order,
                   index_t const layer,
                   Keys const keys,
                   Values const values,
                   slice_plan const plan,
                   uint4* const workspace) {
  extern __shared__ uint4 staged[];
  using T = typename Keys::value_type;
  index_t const row = static_cast<index_t>(blockIdx.x) / ledger.kv_heads;
  index_t const head = static_cast<index_t>(blockIdx.x) - row * ledger.kv_heads;
  index_t const number = ledger.lane(row, layer, head);
  lane_move const lane{order.slots + ledger.cell(number),
                       order.lanes[number].kept,
                       min(ledger.lanes[number].extent, ledger.slots)};
  std::int64_t const block =
      blockIdx.x + gridDim.x * (blockIdx.y + std::int64_t{gridDim.y} * blockIdx.z);
  uint4* const stage =
      plan.in_shared ? staged : workspace + block * slots_in_tiles(ledger.slots) * plan.chunks;
  index_t const first_chunk = static_cast<index_t>(blockIdx.y) * plan.chunks;
  auto const move = [&](auto const& rows) {
    lane_slice<std::remove_cvref_t<decltype(rows)>> const slice{
        rows,
        row,
        head,
        first_chunk,
        min(plan.chunks, chunks_of<T>(rows.channels) - first_chunk),
        31 - __clz(plan.chunks),
        stage};
    if constexpr (!Multiplies) {
      gather_slice(slice, lane);
    } else if constexpr (sizeof(T) == 2) {
      multiply_slice(slice, lane);
    } else {
      multiply_slice_in_float(slice, lane);
    }
  };
  if (blockIdx.z == 0) {
    move(keys);
  } else {
    move(values);
  }
}

}  // namespace detail

/// Bytes of workspace of `compact_async`: none unless lanes are longer than shared memory.
///
/// @param keys  K or V of a layer
template <eviction_policy P, kv_rows Keys>
std::size_t compact_workspace_bytes(ledger_view<P> const& ledger, Keys const& keys) {
  index_t const row_chunks = chunks_of<element_of<Keys>>(keys.channels);
  detail::slice_plan const plan =
      detail::plan_slices(detail::slots_in_tiles(ledger.slots), row_chunks);
  if (plan.in_shared) return 0;
  return 2 * static_cast<std::size_t>(ledger.row_count) *
         static_cast<std::size_t>(ledger.kv_heads) *
         static_cast<std::size_t>(plan.slices(row_chunks) * plan.chunks) *
         static_cast<std::size_t>(detail::slots_in_tiles(ledger.slots)) * chunk_bytes;
}

/// Moves the kept tokens of all lanes in K and V of one layer to the slots 0, 1, ... in ascending
/// position, in place. The second of three stages, between steps: `order_lanes_async` for all
/// lanes, this for each layer, then `compact_ledger_async` (compact_ledger.cuh), without which the
/// books still say where tokens were. K and V may be in pages. `slot_reuse` moves nothing, and then
/// the ledger must stay as it is, too.
///
/// Source: as in `adore::compact`; free slots count as zeros in the product, and an infinity or NaN
///         of a kept token spreads over its channel.
/// @param order      of `order_lanes_async`
/// @param workspace  `compact_workspace_bytes(ledger, keys)`, aligned to 16 bytes
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///          that cannot be read in chunks of 16 bytes, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
template <eviction_policy P, kv_rows Keys, kv_rows Values>
void compact_async(cudaStream_t stream,
                   compaction kind,
                   ledger_view<P> const& ledger,
                   compaction_order const& order,
                   index_t layer,
                   Keys const& keys,
                   Values const& values,
                   void* workspace = nullptr) {
  static_assert(std::is_same_v<typename Keys::value_type, typename Values::value_type> &&
                    !std::is_const_v<typename Keys::value_type>,
                "adore: compact writes K and V, which must have the same element type");
  if (kind == compaction::slot_reuse) return;
  require_field(
      layer >= 0 && layer < ledger.layers, "layer", layer, "the ledger has no such layer");
  require_fits("compact", "keys", keys, ledger.row_count, ledger.kv_heads, ledger.slots);
  require_fits("compact", "values", values, ledger.row_count, ledger.kv_heads, ledger.slots);
  require_same("compact", "values", "channels", values.channels, "keys have", keys.channels);
  check_rows(keys, "keys");
  check_rows(values, "values");
  if (ledger.row_count == 0 || ledger.kv_heads == 0) return;
  detail::require_workspace(
      "compact", workspace, compact_workspace_bytes(ledger, keys), chunk_bytes);

  index_t const row_chunks = chunks_of<element_of<Keys>>(keys.channels);
  index_t const slots = detail::slots_in_tiles(ledger.slots);
  detail::slice_plan const plan = detail::plan_slices(slots, row_chunks);
  dim3 const grid(static_cast<unsigned>(ledger.attended_lanes()),
                  static_cast<unsigned>(plan.slices(row_chunks)),
                  2);
  int const shared = plan.in_shared ? slots * plan.chunks * chunk_bytes : 0;
  auto const launch = [&](auto* kernel) {
    // always the same, so that what a captured graph relies on stays true
    check(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, detail::most_slice_bytes));
    kernel<<<grid, detail::compact_threads, static_cast<std::size_t>(shared), stream>>>(
        ledger, order, layer, keys, values, plan, static_cast<uint4*>(workspace));
    check(cudaGetLastError());
  };
  if (kind == compaction::gather) {
    launch(detail::compact_kernel<false, P, Keys, Values>);
  } else {
    launch(detail::compact_kernel<true, P, Keys, Values>);
  }
}

}  // namespace adore::gpu
