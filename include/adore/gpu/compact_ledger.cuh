// SPDX-License-Identifier: Apache-2.0
// The books after a compaction: positions, states and reservations follow their tokens.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/compaction_order.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace adore::gpu {
namespace detail {

inline constexpr int compact_ledger_threads = 256;

/// Grid: (lane). A lane is read whole before it is written.
template <eviction_policy P>
__global__ void __launch_bounds__(compact_ledger_threads)
    compact_ledger_kernel(ledger_view<P> const ledger,
                          compaction_order const order,
                          position_t* const staged_positions,       // [lane, stride]
                          slot_state_of<P>* const staged_states) {  // [lane, stride]
  constexpr bool has_state = !std::is_empty_v<slot_state_of<P>>;
  auto const lane = static_cast<index_t>(blockIdx.x);
  auto const thread = static_cast<index_t>(threadIdx.x);
  std::int64_t const cell = ledger.cell(lane);
  auto const [kept, held] = order.lanes[lane];
  index_t const extent = min(ledger.lanes[lane].extent, ledger.slots);
  for (index_t i = thread; i < held; i += compact_ledger_threads) {
    index_t const from = order.slots[cell + i];
    staged_positions[cell + i] = ledger.positions[cell + from];
    if constexpr (has_state) staged_states[cell + i] = ledger.states[cell + from];
  }
  __syncthreads();
  for (index_t i = thread; i < extent; i += compact_ledger_threads) {
    position_t const position = i < held ? staged_positions[cell + i] : no_position;
    ledger.positions[cell + i] = position;
    if (i >= held) continue;
    if constexpr (has_state) ledger.states[cell + i] = staged_states[cell + i];
    if (i >= kept) {
      ledger
          .new_slots[static_cast<std::int64_t>(lane) * ledger.max_new + position % ledger.max_new] =
          i;
    }
  }
  if (thread == 0) ledger.lanes[lane].extent = held;
}

template <eviction_policy P>
std::size_t staged_position_bytes(ledger_view<P> const& ledger) {
  return (lanes_of(ledger) * static_cast<std::size_t>(ledger.stride) * sizeof(position_t) + 255) /
         256 * 256;
}

}  // namespace detail

/// Bytes of workspace of `compact_ledger_async`. K/V's workspace may be used again.
template <eviction_policy P>
std::size_t compact_ledger_workspace_bytes(ledger_view<P> const& ledger) {
  std::size_t const cells = detail::lanes_of(ledger) * static_cast<std::size_t>(ledger.stride);
  return detail::staged_position_bytes(ledger) +
         (std::is_empty_v<slot_state_of<P>> ? 0 : cells * sizeof(slot_state_of<P>));
}

/// Moves the books of all lanes as `compact_async` has moved K and V: kept tokens to the slots
/// 0, 1, ... in ascending position, behind them the slots reserved for tokens to come; those after
/// them are unused again.
///
/// @param order      of `order_lanes_async`; no longer true afterwards
/// @param workspace  `compact_ledger_workspace_bytes(ledger)`, aligned to 256 bytes
/// @pre     all layers' K and V have been moved by the same order
/// @throws  std::invalid_argument for a workspace that is null or not aligned, cuda_error if the
///          launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
template <eviction_policy P>
void compact_ledger_async(cudaStream_t stream,
                          ledger_view<P> const& ledger,
                          compaction_order const& order,
                          void* workspace) {
  auto const lanes = static_cast<unsigned>(detail::lanes_of(ledger));
  if (lanes == 0) return;
  detail::require_workspace(
      "compact_ledger", workspace, compact_ledger_workspace_bytes(ledger), 256);
  auto* const bytes = static_cast<std::byte*>(workspace);
  detail::compact_ledger_kernel<<<lanes, detail::compact_ledger_threads, 0, stream>>>(
      ledger,
      order,
      reinterpret_cast<position_t*>(bytes),
      reinterpret_cast<slot_state_of<P>*>(bytes + detail::staged_position_bytes(ledger)));
  check(cudaGetLastError());
}

}  // namespace adore::gpu
