// SPDX-License-Identifier: Apache-2.0
// Where the guests of a row that is loaded sit, and where those to come will: the snapshot says the
// first alone.
#pragma once

#include "adore/eviction/row_snapshot.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <vector>

namespace adore::gpu::detail {

/// The slots of a lane that only guests may use.
struct guest_places {
  std::vector<index_t> slots{};               // [place]
  std::vector<position_t> guests{};           // [place] `no_position`: nobody
  std::vector<unsigned long long> entered{};  // [place] 0 for who came first
  bool in_use = false;  ///< guests have been there, or they are not the lane's last slots
};

/// Descending, as in a row that begins; those of the guests, then the last free ones.
///
/// @pre `saved` is sound, in itself and its past, and of one lane
/// @param count  of the places
/// @throws std::invalid_argument if there are fewer free slots
inline guest_places places_for(row_snapshot const& saved, index_t count) {
  past_snapshot const& past = *saved.past;
  auto const slots = static_cast<index_t>(saved.positions.size());
  guest_places places;
  places.slots = past.guest_slots;
  auto const is_place = [&](index_t slot) {
    return std::find(places.slots.begin(), places.slots.end(), slot) != places.slots.end();
  };
  for (index_t s = slots; s-- > 0 && places.slots.size() < static_cast<std::size_t>(count);) {
    bool const holds_token = saved.positions[static_cast<std::size_t>(s)] != no_position;
    if (!holds_token && !is_place(s)) places.slots.push_back(s);
  }
  if (places.slots.size() < static_cast<std::size_t>(count)) {
    throw std::invalid_argument("adore: the snapshot leaves no slots for tokens that come back");
  }
  std::sort(places.slots.begin(), places.slots.end(), std::greater<>{});
  places.guests.assign(places.slots.size(), no_position);
  places.entered.assign(places.slots.size(), 0);
  for (std::size_t i = 0; i < past.guests.size(); ++i) {
    auto const found = std::find(places.slots.begin(), places.slots.end(), past.guest_slots[i]);
    auto const place = static_cast<std::size_t>(found - places.slots.begin());
    places.guests[place] = past.guests[i];
    places.entered[place] = i;
  }
  bool const any_released =
      std::find(past.cached.begin(), past.cached.end(), std::byte{0}) != past.cached.end();
  places.in_use = !past.guests.empty() || any_released || places.slots.back() != slots - count;
  return places;
}

}  // namespace adore::gpu::detail
