// SPDX-License-Identifier: Apache-2.0
// Released K and V on their way from the device into pinned host memory, and back: the schedule
// `restore` inside a captured graph.
#pragma once

#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace adore::gpu {

/// Which token is where in the tier; device memory but for `cells`.
struct tier_view {
  index_t places = 0;                 // of a row
  index_t* place_of = nullptr;        // [row, token]; -1: not in the tier
  position_t* token_in = nullptr;     // [row, place]; -1: nobody
  unsigned* next_place = nullptr;     // [row] places given out since the beginning
  index_t* leaving_slots = nullptr;   // [row, departure] slot that is copied in this step; -1: none
  index_t* leaving_places = nullptr;  // [row, departure]
  unsigned long long* moved = nullptr;  // tokens that were copied to the host
};

namespace detail {

/// One row per thread: gives places to the tokens that the last decision released, oldest release
/// lost first.
template <eviction_policy P>
__global__ void admit_to_tier_kernel(ledger_view<P> const ledger, tier_view const tier) {
  auto const row = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= ledger.row_count) return;
  index_t const first = row * most_departures;
  for (index_t i = 0; i < most_departures; ++i) tier.leaving_slots[first + i] = -1;
  row_books const& books = ledger.rows[row];
  if (books.count == 0) return;
  std::int64_t const past = std::int64_t{row} * ledger.past.tokens;
  if (books.next == 0) {  // the sequence begins
    for (index_t p = 0; p < ledger.past.tokens; ++p) tier.place_of[past + p] = -1;
    for (index_t k = 0; k < tier.places; ++k) {
      tier.token_in[std::int64_t{row} * tier.places + k] = no_position;
    }
    tier.next_place[row] = 0;
    ledger.past.departed[row] = 0;
    return;
  }
  unsigned const departed = min(ledger.past.departed[row], unsigned{most_departures});
  for (unsigned i = 0; i < departed; ++i) {
    departure const gone = ledger.past.departures[first + static_cast<index_t>(i)];
    if (tier.place_of[past + gone.position] >= 0) continue;  // it was back, and leaves again
    index_t const place =
        static_cast<index_t>(tier.next_place[row]++ % static_cast<unsigned>(tier.places));
    position_t& holder = tier.token_in[std::int64_t{row} * tier.places + place];
    if (holder >= 0) {  // lost: it can never come back
      tier.place_of[past + holder] = -1;
      ledger.past.released[past + holder] = 0;
    }
    holder = gone.position;
    tier.place_of[past + gone.position] = place;
    tier.leaving_slots[first + static_cast<index_t>(i)] = gone.slot;
    tier.leaving_places[first + static_cast<index_t>(i)] = place;
    atomicAdd(tier.moved, 1ULL);
  }
  ledger.past.departed[row] = 0;
}

/// Copies K, then V, of one token and layer between a slot and the tier. A block per token.
template <bool ToTier, class Keys, class Values>
__device__ void move_token(
    Keys const& keys, Values const& values, index_t row, index_t slot, uint4* cells) {
  using T = typename Keys::value_type;
  index_t const chunks = chunks_of<T>(keys.channels);
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));
  index_t const of_keys = keys.kv_heads * chunks;
  for (auto i = static_cast<index_t>(threadIdx.x); i < 2 * of_keys;
       i += static_cast<index_t>(blockDim.x)) {
    bool const is_key = i < of_keys;
    index_t const head = (is_key ? i : i - of_keys) / chunks;
    index_t const channel = (is_key ? i : i - of_keys) % chunks * per_chunk;
    auto* const in_store = reinterpret_cast<uint4*>(
        (is_key ? keys(row, head, slot) : values(row, head, slot)) + channel);
    if constexpr (ToTier) {
      cells[i] = *in_store;
    } else {
      *in_store = cells[i];
    }
  }
}

/// The cells of one layer in the tier.
struct tier_layer {
  tier_view tier;
  uint4* cells;              // [row, place, K then V, kv_head, channel]
  std::int64_t token_cells;  // of one (row, place)

  __device__ uint4* at(index_t row, index_t place) const {
    return cells + (std::int64_t{row} * tier.places + place) * token_cells;
  }
};

/// A block per row and departure.
template <kv_rows Keys, kv_rows Values>
__global__ void stow_layer_kernel(tier_layer const layer, Keys const keys, Values const values) {
  auto const block = static_cast<index_t>(blockIdx.x);
  index_t const slot = layer.tier.leaving_slots[block];
  if (slot < 0) return;
  index_t const row = block / most_departures;
  move_token<true>(keys, values, row, slot, layer.at(row, layer.tier.leaving_places[block]));
}

/// A block per token that enters.
template <kv_rows Keys, kv_rows Values>
__global__ void restore_layer_kernel(tier_layer const layer,
                                     rebuilt_tokens const entering,
                                     index_t const past_tokens,
                                     Keys const keys,
                                     Values const values) {
  auto const block = static_cast<index_t>(blockIdx.x);
  index_t const row = entering.rows[block];
  if (row < 0) return;
  std::int64_t const token = std::int64_t{row} * past_tokens + entering.positions[block];
  index_t const place = layer.tier.place_of[token];
  if (place < 0) return;
  move_token<false>(keys, values, row, entering.slots[block], layer.at(row, place));
}

}  // namespace detail

/// A tier in pinned host memory, which kernels write and read themselves.
///
/// A step: `begin_step_async` before `device_rebuild::begin_step_async`; then `move_layer_async`
/// for each layer before its attention, on any stream that waits for these and that the attention
/// waits for. Memory: pinned host memory of the limit, at construction; on the device 4 bytes per
/// token.
template <class T>
class device_tier {
 public:
  /// @param shape        of the store
  /// @param tokens       of the longest sequence
  /// @param limit_bytes  of all rows together; what every row would need at most, if that is less
  /// @throws std::invalid_argument if not one token per row fits; cuda_error
  device_tier(kv_shape const& shape, index_t tokens, std::size_t limit_bytes) : shape_(shape) {
    std::size_t const of_layer = static_cast<std::size_t>(2 * shape.kv_heads) *
                                 static_cast<std::size_t>(shape.channels) * sizeof(T);
    token_cells_ = static_cast<std::int64_t>(of_layer / sizeof(uint4));
    auto const rows = static_cast<std::size_t>(shape.sequences);
    std::size_t const of_token = of_layer * static_cast<std::size_t>(shape.layers);
    std::size_t const places =
        std::min(limit_bytes / of_token / rows, static_cast<std::size_t>(tokens));
    if (places == 0) {
      throw std::invalid_argument(
          "adore: device_tier: limit_bytes = " + std::to_string(limit_bytes) + ": a token needs " +
          std::to_string(of_token) + " bytes, for each of " + std::to_string(rows) + " rows");
    }
    view_.places = static_cast<index_t>(places);
    bytes_ = of_token * places * rows;
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, bytes_, cudaHostAllocMapped));
    cells_.reset(static_cast<uint4*>(memory));
    void* mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, memory, 0));
    mapped_ = static_cast<uint4*>(mapped);
    place_of_ = device_buffer<index_t>(rows * static_cast<std::size_t>(tokens));
    of_places_ = device_buffer<index_t>(rows * places);
    of_rows_ = device_buffer<unsigned>(rows);
    leaving_ = device_buffer<index_t>(2 * rows * most_departures);
    moved_ = device_buffer<unsigned long long>(1);
    check(cudaMemset(place_of_.data(), 0xFF, place_of_.bytes()));
    check(cudaMemset(of_places_.data(), 0xFF, of_places_.bytes()));
    check(cudaMemset(of_rows_.data(), 0, of_rows_.bytes()));
    check(cudaMemset(leaving_.data(), 0xFF, leaving_.bytes()));
    check(cudaMemset(moved_.data(), 0, moved_.bytes()));
    check(cudaDeviceSynchronize());
    view_.place_of = place_of_.data();
    view_.token_in = of_places_.data();
    view_.next_place = of_rows_.data();
    view_.leaving_slots = leaving_.data();
    view_.leaving_places = leaving_.data() + rows * most_departures;
    view_.moved = moved_.data();
  }

  std::size_t bytes() const noexcept { return bytes_; }
  /// Bytes of K and V of one token.
  std::size_t bytes_of_token() const noexcept {
    return static_cast<std::size_t>(token_cells_) * sizeof(uint4) *
           static_cast<std::size_t>(shape_.layers);
  }
  /// Tokens that have been copied to the host. Synchronises.
  std::uint64_t tokens_stowed(cudaStream_t stream) const { return moved_.to_host(stream).front(); }

  /// What the last decision released gets its places.
  /// Stream: asynchronous, capturable. Memory: none.
  template <eviction_policy P>
  void begin_step_async(cudaStream_t stream, ledger_view<P> const& ledger) {
    constexpr unsigned threads = 64;
    unsigned const blocks = (static_cast<unsigned>(shape_.sequences) + threads - 1) / threads;
    detail::admit_to_tier_kernel<P><<<blocks, threads, 0, stream>>>(ledger, view_);
    check(cudaGetLastError());
  }
  /// One layer of the tokens that leave goes to the host, one of those that enter comes back.
  ///
  /// @param past_tokens  `past_view::tokens` of the ledger
  /// Stream: asynchronous, capturable. Memory: none.
  template <kv_rows Keys, kv_rows Values>
  void move_layer_async(cudaStream_t stream,
                        rebuilt_tokens const& entering,
                        index_t past_tokens,
                        index_t layer,
                        Keys const& keys,
                        Values const& values) {
    std::int64_t const of_layer = std::int64_t{shape_.sequences} * view_.places * token_cells_;
    detail::tier_layer const there{view_, mapped_ + layer * of_layer, token_cells_};
    constexpr unsigned threads = 256;
    auto const departures = static_cast<unsigned>(shape_.sequences * most_departures);
    detail::stow_layer_kernel<<<departures, threads, 0, stream>>>(there, keys, values);
    check(cudaGetLastError());
    detail::restore_layer_kernel<<<static_cast<unsigned>(entering.count), threads, 0, stream>>>(
        there, entering, past_tokens, keys, values);
    check(cudaGetLastError());
  }

 private:
  struct host_deleter {
    void operator()(uint4* memory) const { cudaFreeHost(memory); }
  };

  kv_shape shape_;
  std::int64_t token_cells_ = 0;  // of 16 bytes, of one layer
  std::size_t bytes_ = 0;
  tier_view view_;
  std::unique_ptr<uint4, host_deleter> cells_;  // [layer, row, place, K then V, kv_head, channel]
  uint4* mapped_ = nullptr;
  device_buffer<index_t> place_of_, of_places_, leaving_;
  device_buffer<unsigned> of_rows_;
  device_buffer<unsigned long long> moved_;
};

}  // namespace adore::gpu
