// SPDX-License-Identifier: Apache-2.0
// Which slot goes where when lanes are compacted: every lane's slots in ascending position.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace adore::gpu {

/// The order of all lanes, in workspace: place i of a lane is for the token in slot slots[i].
///
/// The `kept` tokens come first; places kept .. held - 1 are reserved for tokens to come.
struct compaction_order {
  struct counts {
    index_t kept, held;
  };
  index_t* slots = nullptr;  // [lane, stride]
  counts* lanes = nullptr;   // [lane]
};

namespace detail {

inline constexpr int sort_threads = 256;
// Lanes of so many slots are sorted in shared memory, 8 bytes each: 128 KiB. Longer ones are sorted
// by the same code in the workspace.
inline constexpr index_t most_sorted_in_shared = 16384;

ADORE_HOST_DEVICE constexpr index_t power_of_two_from(index_t count) {
  index_t power = 1;
  while (power < count) power *= 2;
  return power;
}
template <eviction_policy P>
std::size_t lanes_of(ledger_view<P> const& ledger) {
  return static_cast<std::size_t>(ledger.row_count) *
         static_cast<std::size_t>(ledger.lanes_per_row());
}
constexpr std::size_t in_chunks(std::size_t bytes) {
  return (bytes + 15) / 16 * 16;
}
template <eviction_policy P>
std::size_t order_slot_bytes(ledger_view<P> const& ledger) {
  return in_chunks(lanes_of(ledger) * static_cast<std::size_t>(ledger.stride) * sizeof(index_t));
}
template <eviction_policy P>
std::size_t order_count_bytes(ledger_view<P> const& ledger) {
  return in_chunks(lanes_of(ledger) * sizeof(compaction_order::counts));
}

/// Sorts keys[0, count) by Batcher's bitonic network, `count` a power of two: few slots are out of
/// order, but which is not known, and the network needs no workspace and no counting of digits.
__device__ inline void sort_in_block(std::uint64_t* keys, index_t count) {
  for (index_t run = 2; run <= count; run *= 2) {
    for (index_t distance = run / 2; distance > 0; distance /= 2) {
      for (index_t n = static_cast<index_t>(threadIdx.x); n < count / 2;
           n += static_cast<index_t>(blockDim.x)) {
        index_t const i = 2 * n - (n & (distance - 1));  // has no bit `distance`
        std::uint64_t const a = keys[i];
        std::uint64_t const b = keys[i + distance];
        bool const ascending = (i & run) == 0;
        if ((a > b) == ascending) {
          keys[i] = b;
          keys[i + distance] = a;
        }
      }
      __syncthreads();
    }
  }
}

/// Grid: (lane).
///
/// @param long_keys  nullptr, or [lane, power of two >= slots] for lanes too long for shared memory
template <eviction_policy P>
__global__ void __launch_bounds__(sort_threads) order_kernel(ledger_view<P> const ledger,
                                                             compaction_order const order,
                                                             std::uint64_t* const long_keys) {
  extern __shared__ __align__(16) std::uint64_t short_keys[];
  auto const lane = static_cast<index_t>(blockIdx.x);
  std::uint64_t* const keys =
      long_keys == nullptr
          ? short_keys
          : long_keys + static_cast<std::int64_t>(lane) * power_of_two_from(ledger.slots);
  position_t const* const positions = ledger.positions + ledger.cell(lane);
  index_t const extent = min(ledger.lanes[lane].extent, ledger.slots);
  position_t const next = ledger.rows[lane / ledger.lanes_per_row()].next;
  index_t const count = power_of_two_from(extent);
  auto const thread = static_cast<index_t>(threadIdx.x);
  constexpr std::uint64_t free_slot = ~std::uint64_t{0};
  for (index_t s = thread; s < count; s += sort_threads) {
    position_t const p = s < extent ? positions[s] : no_position;
    keys[s] =
        p < 0 ? free_slot : (static_cast<std::uint64_t>(p) << 32U) | static_cast<std::uint32_t>(s);
  }
  if (thread == 0) order.lanes[lane] = {0, 0};
  __syncthreads();
  sort_in_block(keys, count);
  auto const kept = [&](std::uint64_t key) {
    return key != free_slot && static_cast<position_t>(key >> 32U) < next;
  };
  for (index_t i = thread; i < extent; i += sort_threads) {
    std::uint64_t const key = keys[i];
    std::uint64_t const after = i + 1 < extent ? keys[i + 1] : free_slot;
    if (key == free_slot) continue;
    order.slots[ledger.cell(lane) + i] = static_cast<index_t>(key & 0xFFFFFFFFU);
    if (kept(key) && !kept(after)) order.lanes[lane].kept = i + 1;
    if (after == free_slot) order.lanes[lane].held = i + 1;
  }
}

}  // namespace detail

/// Bytes of workspace of the order of all lanes; they must stay until the last lane has moved.
template <eviction_policy P>
std::size_t compaction_order_bytes(ledger_view<P> const& ledger) {
  std::size_t const long_keys =
      ledger.slots <= detail::most_sorted_in_shared
          ? 0
          : detail::lanes_of(ledger) *
                static_cast<std::size_t>(detail::power_of_two_from(ledger.slots)) *
                sizeof(std::uint64_t);
  return detail::order_slot_bytes(ledger) + detail::order_count_bytes(ledger) + long_keys;
}

/// Orders all lanes of all rows: once, before `compact_async` of each layer.
///
/// @param workspace  `compaction_order_bytes(ledger)`, aligned to 16 bytes
/// @return the order, for kernels that come after on the stream
/// @pre     between steps; the ledger stays as it is until `compact_ledger_async`
/// @throws  std::logic_error if released tokens may come back, std::invalid_argument for a
///          workspace that is null or not aligned, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
/// Cost:    slots log^2 slots comparisons per lane; small beside moving one layer's K and V.
template <eviction_policy P>
compaction_order order_lanes_async(cudaStream_t stream,
                                   ledger_view<P> const& ledger,
                                   void* workspace) {
  if (ledger.guests > 0) {
    throw std::logic_error(
        "adore: order_lanes_async: tokens that come back have their slots; such a cache is not "
        "compacted");
  }
  detail::require_workspace(
      "order_lanes_async", workspace, compaction_order_bytes(ledger), chunk_bytes);
  auto* const bytes = static_cast<std::byte*>(workspace);
  compaction_order order;
  order.slots = reinterpret_cast<index_t*>(bytes);
  order.lanes =
      reinterpret_cast<compaction_order::counts*>(bytes + detail::order_slot_bytes(ledger));
  bool const in_shared = ledger.slots <= detail::most_sorted_in_shared;
  auto* const long_keys = reinterpret_cast<std::uint64_t*>(
      bytes + detail::order_slot_bytes(ledger) + detail::order_count_bytes(ledger));
  std::size_t const shared =
      in_shared ? static_cast<std::size_t>(detail::power_of_two_from(ledger.slots)) *
                      sizeof(std::uint64_t)
                : 0;
  auto const lanes = static_cast<unsigned>(detail::lanes_of(ledger));
  if (lanes == 0) return order;
  check(cudaFuncSetAttribute(
      detail::order_kernel<P>,
      cudaFuncAttributeMaxDynamicSharedMemorySize,
      detail::most_sorted_in_shared * static_cast<int>(sizeof(std::uint64_t))));
  detail::order_kernel<<<lanes, detail::sort_threads, shared, stream>>>(
      ledger, order, in_shared ? nullptr : long_keys);
  check(cudaGetLastError());
  return order;
}

}  // namespace adore::gpu
