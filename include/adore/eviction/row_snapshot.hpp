// SPDX-License-Identifier: Apache-2.0
// A row's books at one moment, and what they must be like to go on from.
#pragma once

#include "adore/eviction/past_snapshot.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// A row's books at one moment: enough to go on exactly from there.
///
/// States are copied byte by byte, so two snapshots of the same decisions are the same bytes unless
/// a state has padding, which nobody gives a value; none of the library's has.
struct row_snapshot {
  scope reach = scope::model;
  position_t next = 0;
  std::uint64_t seed = 0;
  std::vector<index_t> budgets{};        // [lane]
  std::vector<position_t> positions{};   // [lane, slot]
  std::vector<position_t> rotary{};      // [lane, slot]
  std::vector<std::byte> slot_states{};  // [lane, slot] of the policy's slot_state
  std::vector<std::byte> lane_states{};  // [lane] of the policy's lane_state
  std::optional<past_snapshot> past{};   // if released tokens may come back
};

/// What a snapshot must measure to fit into the books of a cache.
struct row_measure {
  scope reach = scope::model;
  std::size_t lanes = 0, slots = 0;                                ///< of one row, of one lane
  std::size_t bytes_per_slot_state = 0, bytes_per_lane_state = 0;  ///< 0: the policy keeps none
  bool has_past = false;  ///< somebody takes care of `past`
};

/// @throws std::invalid_argument if the snapshot does not fit, or contradicts itself
inline void require_sound(row_snapshot const& saved, row_measure const& books) {
  std::size_t const cells = books.lanes * books.slots;
  std::size_t const saved_slots = saved.positions.size() / std::max(books.lanes, std::size_t{1});
  if (saved.reach == books.reach && saved.budgets.size() == books.lanes &&
      saved.positions.size() == books.lanes * saved_slots && saved_slots != books.slots) {
    throw std::invalid_argument("adore: restore: the snapshot has " + std::to_string(saved_slots) +
                                " slots per lane, and this cache has " +
                                std::to_string(books.slots));
  }
  bool const fits = saved.reach == books.reach && saved.budgets.size() == books.lanes &&
                    saved.positions.size() == cells && saved.rotary.size() == cells &&
                    saved.slot_states.size() == cells * books.bytes_per_slot_state &&
                    saved.lane_states.size() == books.lanes * books.bytes_per_lane_state;
  if (!fits) {
    throw std::invalid_argument(
        "adore: restore: the snapshot is of a cache with another scope, number of lanes, or "
        "policy");
  }
  if (saved.past && !books.has_past) {
    throw std::invalid_argument(
        "adore: restore: the snapshot has released tokens that may come back, which these books "
        "do not know");
  }
  for (std::size_t lane = 0; lane < books.lanes; ++lane) {
    auto const begin = saved.positions.begin() + static_cast<std::ptrdiff_t>(lane * books.slots);
    std::vector<position_t> present(begin, begin + static_cast<std::ptrdiff_t>(books.slots));
    std::erase(present, no_position);
    std::sort(present.begin(), present.end());
    bool const sound = saved.next >= 0 && saved.budgets[lane] >= 0 &&
                       (present.empty() || (present.front() >= 0 && present.back() < saved.next)) &&
                       std::adjacent_find(present.begin(), present.end()) == present.end();
    if (!sound) {
      throw std::invalid_argument("adore: restore: lane " + std::to_string(lane) +
                                  " of the snapshot holds a position twice, or one that its "
                                  "sequence has not reached");
    }
  }
}

}  // namespace adore
