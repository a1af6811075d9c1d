// SPDX-License-Identifier: Apache-2.0
// A ledger that a test fills by hand: the arrays on the host, a copy of them on the device.
#pragma once

#include <adore/concepts.hpp>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/ledger_view.cuh>
#include <adore/types.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

namespace adore::testing {

struct books_shape {
  index_t rows = 1, layers = 1, kv_heads = 1, slots = 8, max_new = 1;
  scope reach = scope::kv_head;
};

/// The host's vectors are the test's to read and write; `to_device` and `from_device` copy them
/// all.
template <eviction_policy P>
class books_on_device {
 public:
  std::vector<position_t> positions;          // [lane, stride]
  std::vector<slot_state_of<P>> states;       // [lane, stride]; empty state: one element
  std::vector<lane_state_of<P>> lane_states;  // [lane]; empty state: one element
  std::vector<gpu::lane_books> lanes;         // [lane]
  std::vector<index_t> new_slots;             // [lane, max_new], -1: none
  std::vector<gpu::row_books> rows;           // [row]

  explicit books_on_device(books_shape const& shape) {
    view_.row_count = shape.rows;
    view_.layers = shape.layers;
    view_.kv_heads = shape.kv_heads;
    view_.slots = shape.slots;
    view_.stride = (shape.slots + 15) / 16 * 16;
    view_.max_new = shape.max_new;
    view_.reach = shape.reach;
    auto const count = static_cast<std::size_t>(lane_count());
    auto const cells = count * static_cast<std::size_t>(view_.stride);
    positions.assign(cells, no_position);
    states.resize(std::is_empty_v<slot_state_of<P>> ? 1 : cells);
    lane_states.resize(std::is_empty_v<lane_state_of<P>> ? 1 : count);
    lanes.resize(count);
    new_slots.assign(count * static_cast<std::size_t>(shape.max_new), -1);
    rows.resize(static_cast<std::size_t>(shape.rows));
    positions_ = gpu::device_buffer<position_t>(positions.size());
    states_ = gpu::device_buffer<slot_state_of<P>>(states.size());
    lane_states_ = gpu::device_buffer<lane_state_of<P>>(lane_states.size());
    lanes_ = gpu::device_buffer<gpu::lane_books>(lanes.size());
    new_slots_ = gpu::device_buffer<index_t>(new_slots.size());
    rows_ = gpu::device_buffer<gpu::row_books>(rows.size());
    without_room_ = gpu::device_buffer<unsigned>(1);
    view_.positions = positions_.data();
    view_.states = states_.data();
    view_.lane_states = lane_states_.data();
    view_.lanes = lanes_.data();
    view_.new_slots = new_slots_.data();
    view_.rows = rows_.data();
    view_.lanes_without_room = without_room_.data();
  }

  gpu::ledger_view<P> const& view() const noexcept { return view_; }
  index_t lane_count() const { return view_.row_count * view_.lanes_per_row(); }
  index_t row_of(index_t lane) const { return lane / view_.lanes_per_row(); }

  position_t& position(index_t lane, index_t slot) {
    return positions[static_cast<std::size_t>(view_.cell(lane) + slot)];
  }
  slot_state_of<P>& state(index_t lane, index_t slot) {
    return states[std::is_empty_v<slot_state_of<P>>
                      ? 0
                      : static_cast<std::size_t>(view_.cell(lane) + slot)];
  }
  gpu::lane_books& lane(index_t number) { return lanes[static_cast<std::size_t>(number)]; }
  gpu::row_books& row(index_t number) { return rows[static_cast<std::size_t>(number)]; }
  index_t& new_slot(index_t lane, position_t position) {
    return new_slots[static_cast<std::size_t>(lane * view_.max_new + position % view_.max_new)];
  }

  /// Puts the token at `position` into a free slot; one at or after the row's `next` is reserved.
  void put(index_t lane, index_t slot, position_t at) {
    position(lane, slot) = at;
    gpu::lane_books& books = lanes[static_cast<std::size_t>(lane)];
    books.extent = std::max(books.extent, slot + 1);
    if (at >= row(row_of(lane)).next) {
      new_slot(lane, at) = slot;
    } else {
      ++books.occupied;
    }
  }
  /// Fills a lane with `kept` different positions below the row's `next` and the reservations for
  /// max_new tokens, in random slots below kept + max_new + holes.
  void fill(index_t lane, index_t kept, index_t holes, std::mt19937& random) {
    position_t const next = row(row_of(lane)).next;
    std::vector<position_t> past(static_cast<std::size_t>(next));
    for (position_t p = 0; p < next; ++p) past[static_cast<std::size_t>(p)] = p;
    std::shuffle(past.begin(), past.end(), random);
    past.resize(static_cast<std::size_t>(kept));
    for (index_t j = 0; j < view_.max_new; ++j) past.push_back(next + j);
    std::vector<index_t> places(static_cast<std::size_t>(kept + view_.max_new + holes));
    for (std::size_t s = 0; s < places.size(); ++s) places[s] = static_cast<index_t>(s);
    std::shuffle(places.begin(), places.end(), random);
    for (std::size_t i = 0; i < past.size(); ++i) put(lane, places[i], past[i]);
  }

  void to_device(cudaStream_t stream) {
    positions_.copy_from_async(positions, stream);
    states_.copy_from_async(states, stream);
    lane_states_.copy_from_async(lane_states, stream);
    lanes_.copy_from_async(lanes, stream);
    new_slots_.copy_from_async(new_slots, stream);
    rows_.copy_from_async(rows, stream);
    without_room_.fill_async(0, stream);
    gpu::check(cudaStreamSynchronize(stream));
  }
  void from_device(cudaStream_t stream) {
    positions = positions_.to_host(stream);
    states = states_.to_host(stream);
    lane_states = lane_states_.to_host(stream);
    lanes = lanes_.to_host(stream);
    new_slots = new_slots_.to_host(stream);
    rows = rows_.to_host(stream);
  }

 private:
  gpu::ledger_view<P> view_;
  gpu::device_buffer<position_t> positions_;
  gpu::device_buffer<slot_state_of<P>> states_;
  gpu::device_buffer<lane_state_of<P>> lane_states_;
  gpu::device_buffer<gpu::lane_books> lanes_;
  gpu::device_buffer<index_t> new_slots_;
  gpu::device_buffer<gpu::row_books> rows_;
  gpu::device_buffer<unsigned> without_room_;
};

}  // namespace adore::testing
