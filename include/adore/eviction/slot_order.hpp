// SPDX-License-Identifier: Apache-2.0
// The tokens of each lane in ascending position, kept up to date step by step: the order in which
// host attention adds up, so that its bits do not depend on which slots were free.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace adore {

class slot_order {
 public:
  slot_order() = default;
  explicit slot_order(index_t lanes)
      : slots_(static_cast<std::size_t>(lanes)), positions_(static_cast<std::size_t>(lanes)) {}

  std::span<index_t const> slots(index_t lane) const { return at(slots_, lane); }
  std::span<position_t const> positions(index_t lane) const { return at(positions_, lane); }

  /// @pre the position is larger than all in the lane
  void append(index_t lane, index_t slot, position_t position) {
    at(slots_, lane).push_back(slot);
    at(positions_, lane).push_back(position);
  }
  void insert(index_t lane, index_t slot, position_t position) {
    auto& positions = at(positions_, lane);
    auto const place = std::lower_bound(positions.begin(), positions.end(), position);
    auto& slots = at(slots_, lane);
    slots.insert(slots.begin() + (place - positions.begin()), slot);
    positions.insert(place, position);
  }
  void remove(index_t lane, position_t position) {
    auto& positions = at(positions_, lane);
    auto const place = std::lower_bound(positions.begin(), positions.end(), position);
    auto& slots = at(slots_, lane);
    slots.erase(slots.begin() + (place - positions.begin()));
    positions.erase(place);
  }
  /// Forgets the newest `count` tokens.
  void drop_newest(index_t lane, index_t count) {
    auto const size = at(slots_, lane).size() - static_cast<std::size_t>(count);
    at(slots_, lane).resize(size);
    at(positions_, lane).resize(size);
  }
  void clear(index_t lane) {
    at(slots_, lane).clear();
    at(positions_, lane).clear();
  }
  void copy(index_t from, index_t to) {
    at(slots_, to) = at(slots_, from);
    at(positions_, to) = at(positions_, from);
  }
  /// Takes over a lane as it is: [slot] positions, `no_position` where free, guests marked.
  void assign(index_t lane, std::span<position_t const> positions) {
    auto const position_in = [&](index_t s) {
      return position_in_slot(positions[static_cast<std::size_t>(s)]);
    };
    auto& slots = at(slots_, lane);
    slots.clear();
    for (std::size_t s = 0; s < positions.size(); ++s) {
      if (positions[s] != no_position) slots.push_back(static_cast<index_t>(s));
    }
    std::sort(slots.begin(), slots.end(), [&](index_t a, index_t b) {
      return position_in(a) < position_in(b);
    });
    auto& ascending = at(positions_, lane);
    ascending.clear();
    for (index_t const s : slots) ascending.push_back(position_in(s));
  }

 private:
  template <class T>
  static std::vector<T>& at(std::vector<std::vector<T>>& data, index_t lane) {
    return data[static_cast<std::size_t>(lane)];
  }
  template <class T>
  static std::vector<T> const& at(std::vector<std::vector<T>> const& data, index_t lane) {
    return data[static_cast<std::size_t>(lane)];
  }
  std::vector<std::vector<index_t>> slots_;         // [lane][rank]
  std::vector<std::vector<position_t>> positions_;  // [lane][rank]
};

}  // namespace adore
