// SPDX-License-Identifier: Apache-2.0
// The memory of the books: positions and policy state of all lanes, each beginning at a cache line.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/cache_line_allocator.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace adore {

template <eviction_policy P>
class lane_memory {
 public:
  using slot_state = slot_state_of<P>;
  using lane_state = lane_state_of<P>;

  lane_memory(index_t lanes, index_t slots)
      : slots_(slots), stride_(whole_cache_lines<position_t>(slots)) {
    auto const cells = static_cast<std::size_t>(lanes) * static_cast<std::size_t>(stride_);
    positions_.assign(cells, no_position);
    rotary_.assign(cells, no_position);
    states_.resize(keeps_slot_state ? cells : 1);
    lane_states_.resize(keeps_lane_state ? static_cast<std::size_t>(lanes) : 1);
  }

  index_t slots() const noexcept { return slots_; }
  /// [slot]; `no_position` where the slot is free.
  std::span<position_t const> positions(index_t lane) const noexcept {
    return {positions_.data() + offset(lane), static_cast<std::size_t>(slots_)};
  }
  std::span<position_t const> rotary(index_t lane) const noexcept {
    return {rotary_.data() + offset(lane), static_cast<std::size_t>(slots_)};
  }
  lane_slots<P> slots_of(index_t lane) noexcept {
    auto const begin = offset(lane);
    return {slots_,
            positions_.data() + begin,
            rotary_.data() + begin,
            states_.data() + (keeps_slot_state ? begin : 0),
            &lane_states_[keeps_lane_state ? static_cast<std::size_t>(lane) : 0]};
  }

  /// Puts a token that has no state yet into a slot.
  void put(index_t lane, index_t slot, position_t position) noexcept {
    auto const cell = static_cast<std::size_t>(offset(lane) + slot);
    positions_[cell] = position;
    rotary_[cell] = position;
    if constexpr (keeps_slot_state) states_[cell] = {};
  }
  void clear(index_t lane) noexcept {
    std::fill_n(positions_.begin() + offset(lane), slots_, no_position);
    if constexpr (keeps_lane_state) lane_states_[static_cast<std::size_t>(lane)] = {};
  }
  void copy(index_t from, index_t to) noexcept {
    copy_cells(positions_, from, to);
    copy_cells(rotary_, from, to);
    if constexpr (keeps_slot_state) copy_cells(states_, from, to);
    if constexpr (keeps_lane_state) {
      lane_states_[static_cast<std::size_t>(to)] = lane_states_[static_cast<std::size_t>(from)];
    }
  }
  /// Moves a lane's tokens about: new_slot_of[old slot], -1 for a free one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    lane_slots<P> const now = slots_of(lane);
    std::vector<position_t> const positions(now.positions, now.positions + slots_);
    std::vector<position_t> const rotary(now.rotary, now.rotary + slots_);
    std::vector<slot_state> const states(now.states, now.states + (keeps_slot_state ? slots_ : 1));
    std::fill_n(now.positions, slots_, no_position);
    for (std::size_t old = 0; old < positions.size(); ++old) {
      if (positions[old] == no_position) continue;
      index_t const slot = new_slot_of[old];
      now.positions[slot] = positions[old];
      now.rotary[slot] = rotary[old];
      if constexpr (keeps_slot_state) now.states[slot] = states[old];
    }
  }

  /// Bytes of one state in a snapshot, 0 if the policy keeps none.
  static constexpr std::size_t bytes_per_slot_state =
      std::is_empty_v<slot_state> ? 0 : sizeof(slot_state);
  static constexpr std::size_t bytes_per_lane_state =
      std::is_empty_v<lane_state> ? 0 : sizeof(lane_state);

  /// Appends a lane's states to those of the lanes before it.
  void save_states(index_t lane,
                   std::vector<std::byte>& of_slots,
                   std::vector<std::byte>& of_lanes) const {
    auto const append = [](std::vector<std::byte>& to, void const* from, std::size_t count) {
      auto const* const bytes = static_cast<std::byte const*>(from);
      to.insert(to.end(), bytes, bytes + count);
    };
    append(of_slots,
           states_.data() + (keeps_slot_state ? offset(lane) : 0),
           static_cast<std::size_t>(slots_) * bytes_per_slot_state);
    append(of_lanes, lane_states_.data() + (keeps_lane_state ? lane : 0), bytes_per_lane_state);
  }
  /// Takes over a lane as it was saved; the states are those of this lane.
  void load(index_t lane,
            position_t const* positions,
            position_t const* rotary,
            std::byte const* of_slots,
            std::byte const* of_lane) {
    lane_slots<P> const now = slots_of(lane);
    std::copy_n(positions, slots_, now.positions);
    std::copy_n(rotary, slots_, now.rotary);
    if constexpr (keeps_slot_state) {
      std::memcpy(now.states, of_slots, static_cast<std::size_t>(slots_) * bytes_per_slot_state);
    }
    if constexpr (keeps_lane_state) std::memcpy(now.lane_state, of_lane, bytes_per_lane_state);
  }

 private:
  static constexpr bool keeps_slot_state = !std::is_empty_v<slot_state>;
  static constexpr bool keeps_lane_state = !std::is_empty_v<lane_state>;
  template <class T>
  using cells_of = std::vector<T, cache_line_allocator<T>>;

  std::ptrdiff_t offset(index_t lane) const noexcept {
    return static_cast<std::ptrdiff_t>(lane) * stride_;
  }
  template <class T>
  void copy_cells(cells_of<T>& data, index_t from, index_t to) {
    std::copy_n(data.begin() + offset(from), slots_, data.begin() + offset(to));
  }

  index_t slots_;
  index_t stride_;                       // cells from lane to lane
  cells_of<position_t> positions_;       // [lane, slot]
  cells_of<position_t> rotary_;          // [lane, slot]
  cells_of<slot_state> states_;          // [lane, slot]
  std::vector<lane_state> lane_states_;  // [lane]
};

}  // namespace adore
