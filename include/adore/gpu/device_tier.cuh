// SPDX-License-Identifier: Apache-2.0
// Released K and V on their way from the device into pinned host memory, and back: the schedule
// `restore` inside a captured graph.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/past_snapshot.hpp"
#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tier_moves.cuh"
#include "adore/gpu/tier_places.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::gpu {

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
    if (shape.sequences < 1 || tokens < 1) {
      throw std::invalid_argument("adore: device_tier: " + std::to_string(shape.sequences) +
                                  " rows of " + std::to_string(tokens) + " tokens: at least one");
    }
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
    return bytes_of_layer() * static_cast<std::size_t>(shape_.layers);
  }
  /// Tokens that have been copied to the host. Synchronises.
  std::uint64_t tokens_stowed(cudaStream_t stream) const { return moved_.to_host(stream).front(); }

  /// What the last decision released gets its places.
  /// Stream: asynchronous, capturable. Memory: none.
  template <eviction_policy P>
  void begin_step_async(cudaStream_t stream, ledger_view<P> const& ledger) {
    require_ledger(ledger.row_count, ledger.past.tokens);
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
    require_ledger(shape_.sequences, past_tokens);
    require_fits("device_tier", "keys", keys, shape_.sequences, shape_.kv_heads, shape_.slots);
    require_fits("device_tier", "values", values, shape_.sequences, shape_.kv_heads, shape_.slots);
    check_rows(keys, "keys");
    check_rows(values, "values");
    detail::tier_layer const there = layer_in(mapped_, layer);
    constexpr unsigned threads = 256;
    auto const departures = static_cast<unsigned>(shape_.sequences * most_departures);
    detail::stow_layer_kernel<<<departures, threads, 0, stream>>>(there, 0, keys, values);
    check(cudaGetLastError());
    detail::restore_layer_kernel<<<static_cast<unsigned>(entering.count), threads, 0, stream>>>(
        there, entering, past_tokens, keys, values);
    check(cudaGetLastError());
  }

  // ------------------------------------------------------------------ life of a sequence

  /// What the last decision released of a row goes to the host before the row's next step begins.
  ///
  /// @param store  with `keys(layer)` and `values(layer)`
  /// Stream: asynchronous. Memory: none.
  template <eviction_policy P, class Store>
  void stow_row_async(cudaStream_t stream,
                      ledger_view<P> const& ledger,
                      index_t row,
                      Store& store) {
    require_ledger(ledger.row_count, ledger.past.tokens);
    detail::admit_row_to_tier_kernel<P><<<1, 1, 0, stream>>>(ledger, view_, row);
    check(cudaGetLastError());
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      detail::stow_layer_kernel<<<static_cast<unsigned>(most_departures), 256, 0, stream>>>(
          layer_in(mapped_, layer), row * most_departures, store.keys(layer), store.values(layer));
      check(cudaGetLastError());
    }
  }
  /// `to` has what `from` has. What left with the last decision follows in the next step of both:
  /// it is in the same slots.
  ///
  /// Stream: asynchronous. Memory: none.
  void fork_async(cudaStream_t stream, index_t from, index_t to) {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      detail::fork_layer_kernel<<<64, 256, 0, stream>>>(layer_in(mapped_, layer), from, to);
      check(cudaGetLastError());
    }
    detail::copy_row_async(stream, view_.place_of, tokens_of_row(), from, to);
    detail::copy_row_async(stream, view_.token_in, places(), from, to);
    detail::copy_row_async(stream, view_.next_place, 1, from, to);
  }
  /// Adds to a row's past what it has in the tier, once it has been stowed. Synchronises.
  void save(cudaStream_t stream, index_t row, past_snapshot& past) const {
    auto const given = detail::read_one<unsigned>(stream, view_.next_place + row);
    auto const holders = detail::read_some<position_t>(
        stream, view_.token_in + static_cast<std::size_t>(row) * places(), places());
    auto const all = static_cast<unsigned>(view_.places);
    for (unsigned turn = given < all ? 0 : given - all; turn < given; ++turn) {
      auto const place = static_cast<index_t>(turn % all);
      past.tier_positions.push_back(holders[static_cast<std::size_t>(place)]);
      for (index_t layer = 0; layer < shape_.layers; ++layer) {
        auto const* const cells =
            reinterpret_cast<std::byte const*>(cells_.get() + cell_of(layer, row, place));
        past.tier.insert(past.tier.end(), cells, cells + bytes_of_layer());
      }
    }
  }
  /// Fills the row with what a snapshot has. If the row has fewer places, the oldest releases are
  /// lost. Synchronises.
  ///
  /// @pre the snapshot is sound
  /// @param past  of the ledger, which has been loaded, and is told who can never come back
  void load(cudaStream_t stream, past_view const& past, index_t row, past_snapshot const& saved) {
    check(cudaStreamSynchronize(stream));  // nobody reads or writes the row any more
    std::vector<index_t> place_of(tokens_of_row(), -1);
    std::vector<position_t> holders(places(), no_position);
    std::size_t const count = saved.tier_positions.size();
    std::size_t const lost = count - std::min(count, places());
    for (std::size_t i = 0; i < lost; ++i) {
      std::int64_t const token = std::int64_t{row} * past.tokens + saved.tier_positions[i];
      check(cudaMemsetAsync(past.released + token, 0, 1, stream));
    }
    for (std::size_t i = lost; i < count; ++i) {
      auto const place = static_cast<index_t>(i - lost);
      place_of[static_cast<std::size_t>(saved.tier_positions[i])] = place;
      holders[i - lost] = saved.tier_positions[i];
      std::byte const* from = saved.tier.data() + i * bytes_of_token();
      for (index_t layer = 0; layer < shape_.layers; ++layer, from += bytes_of_layer()) {
        std::memcpy(cells_.get() + cell_of(layer, row, place), from, bytes_of_layer());
      }
    }
    auto const given = static_cast<unsigned>(count - lost);
    auto const first = static_cast<std::size_t>(row);
    detail::write_async(
        stream, view_.place_of + first * tokens_of_row(), std::span<index_t const>(place_of));
    detail::write_async(
        stream, view_.token_in + first * places(), std::span<position_t const>(holders));
    detail::write_async(stream, view_.next_place + first, std::span<unsigned const>(&given, 1));
    check(cudaStreamSynchronize(stream));
  }

 private:
  struct host_deleter {
    void operator()(uint4* memory) const { cudaFreeHost(memory); }
  };

  /// @throws std::logic_error if the tier was made for another ledger
  void require_ledger(index_t rows, index_t tokens) const {
    if (rows == shape_.sequences && static_cast<std::size_t>(tokens) == tokens_of_row()) return;
    throw std::logic_error("adore: device_tier: made for " + std::to_string(shape_.sequences) +
                           " rows of " + std::to_string(tokens_of_row()) +
                           " tokens, the ledger remembers " + std::to_string(rows) + " of " +
                           std::to_string(tokens));
  }
  detail::tier_layer layer_in(uint4* cells, index_t layer) const {
    return {view_, cells + cell_of(layer, 0, 0), token_cells_};
  }
  std::int64_t cell_of(index_t layer, index_t row, index_t place) const {
    return ((std::int64_t{layer} * shape_.sequences + row) * view_.places + place) * token_cells_;
  }
  std::size_t places() const { return static_cast<std::size_t>(view_.places); }
  std::size_t tokens_of_row() const {
    return place_of_.size() / static_cast<std::size_t>(shape_.sequences);
  }
  std::size_t bytes_of_layer() const {
    return static_cast<std::size_t>(token_cells_) * sizeof(uint4);
  }

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
