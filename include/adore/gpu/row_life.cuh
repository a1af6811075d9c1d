// SPDX-License-Identifier: Apache-2.0
// The books of a row when its sequence begins, or goes on in another row.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

/// Begins an empty sequence in a row, or leaves it without one. A block per lane.
///
/// @param budgets  [lane of a row] at the beginning
/// @param count    of new tokens per step; 0: no sequence
template <class P>
__global__ void open_row_kernel(ledger_view<P> const ledger,
                                index_t const* budgets,
                                index_t const row,
                                std::uint64_t const seed,
                                index_t const count) {
  index_t const in_row = static_cast<index_t>(blockIdx.x);
  index_t const lane = row * ledger.lanes_per_row() + in_row;
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.stride;
       s += static_cast<index_t>(blockDim.x)) {
    bool const reserved = count > 0 && s < ledger.max_new;
    bool const for_guests = s >= ledger.slots - ledger.guests && s < ledger.slots;
    ledger.positions[ledger.cell(lane) + s] = reserved ? s : for_guests ? no_guest : no_position;
    if constexpr (scores_tokens<P>) {
      if (reserved) ledger.states_of(lane)[s] = {};
    }
    if (s < ledger.max_new) ledger.new_slots[lane * ledger.max_new + s] = s;
  }
  if (threadIdx.x == 0) {
    ledger.lanes[lane] = {0, count > 0 ? ledger.max_new : 0, budgets[in_row]};
    *ledger.lane_state(lane) = {};
    if (in_row == 0) ledger.rows[row] = {0, count, seed};
  }
}

template <class P>
__global__ void set_counts_kernel(ledger_view<P> const ledger, index_t const* counts) {
  auto const row = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= ledger.row_count) return;
  // an open row has slots reserved for its next tokens
  bool const is_open = ledger.lanes[row * ledger.lanes_per_row()].extent > 0;
  ledger.rows[row].count = is_open ? min(max(counts[row], 0), ledger.max_new) : 0;
}
template <class P>
void set_counts_async(cudaStream_t stream, ledger_view<P> const& ledger, index_t const* counts) {
  if (ledger.row_count == 0) return;
  constexpr unsigned threads = 128;
  unsigned const blocks = (static_cast<unsigned>(ledger.row_count) + threads - 1) / threads;
  set_counts_kernel<<<blocks, threads, 0, stream>>>(ledger, counts);
  check(cudaGetLastError());
}

/// A block per lane.
template <class P>
__global__ void fork_row_kernel(ledger_view<P> const ledger, index_t const from, index_t const to) {
  index_t const in_row = static_cast<index_t>(blockIdx.x);
  index_t const old = from * ledger.lanes_per_row() + in_row;
  index_t const twin = to * ledger.lanes_per_row() + in_row;
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.stride;
       s += static_cast<index_t>(blockDim.x)) {
    ledger.positions[ledger.cell(twin) + s] = ledger.positions[ledger.cell(old) + s];
    if constexpr (!std::is_empty_v<slot_state_of<P>>) {
      ledger.states_of(twin)[s] = ledger.states_of(old)[s];
    }
    if (s < ledger.max_new) {
      ledger.new_slots[twin * ledger.max_new + s] = ledger.new_slots[old * ledger.max_new + s];
    }
  }
  if (threadIdx.x == 0) {
    ledger.lanes[twin] = ledger.lanes[old];
    *ledger.lane_state(twin) = *ledger.lane_state(old);
    if (in_row == 0) ledger.rows[to] = ledger.rows[from];
  }
}

/// But for the past.
template <eviction_policy P>
void fork_row_async(cudaStream_t stream, ledger_view<P> const& ledger, index_t from, index_t to) {
  fork_row_kernel<P>
      <<<static_cast<unsigned>(ledger.lanes_per_row()), 128, 0, stream>>>(ledger, from, to);
  check(cudaGetLastError());
}

}  // namespace adore::gpu::detail
