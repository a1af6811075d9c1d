// SPDX-License-Identifier: Apache-2.0
// What a snapshot holds of a row's released tokens if they may come back, and what that must be
// like to go on from.
#pragma once

#include "adore/types.hpp"

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// A sequence's tokens of which some have been released and may come back, all in the order of
/// their positions but where another is said.
struct past_snapshot {
  index_t phase = 0;                         ///< of schedule `every`
  std::vector<index_t> ids{};                // [position] of the vocabulary
  std::vector<std::byte> cached{};           // [position] 0: released, and may come back
  std::vector<std::byte> states{};           // [position] of the policy's slot_state
  std::vector<position_t> guests{};          // that are back, in the order in which they came
  std::vector<index_t> guest_slots{};        // and where; their K/V are the store's to save
  std::vector<position_t> tier_positions{};  // in a tier, in the order of their release
  std::vector<std::byte> tier{};             // their K/V: layer by layer all K, then all V
};

/// What a cache that brings tokens back expects of a snapshot.
struct past_measure {
  std::size_t bytes_per_slot_state;
  std::size_t guests;           ///< as many may be back at the same time
  bool from_tier;               ///< they come from a tier, of which
  std::size_t bytes_per_token;  ///< is what one takes there
};

/// @param next  position of the sequence's next token
/// @param here  [slot] the row's one lane, sound in itself
/// @throws std::invalid_argument if the past does not fit, or contradicts itself or the lane
inline void require_sound(past_snapshot const& past,
                          position_t next,
                          std::span<position_t const> here,
                          past_measure const& cache) {
  auto const refuse = [](std::string const& why) {
    throw std::invalid_argument("adore: restore: the snapshot " + why);
  };
  auto const tokens = static_cast<std::size_t>(next);
  if (!cache.from_tier && !past.tier.empty()) {
    refuse("has released tokens in a tier, and this cache has none");
  }
  if (past.phase < 0 || past.ids.size() != tokens || past.cached.size() != tokens ||
      past.states.size() != tokens * cache.bytes_per_slot_state ||
      past.guest_slots.size() != past.guests.size() ||
      past.tier.size() != past.tier_positions.size() * cache.bytes_per_token) {
    refuse("remembers another number of tokens than its sequence has, or is of another policy");
  }
  if (past.guests.size() > cache.guests) {
    refuse("has " + std::to_string(past.guests.size()) + " released tokens back; this cache has " +
           "slots for " + std::to_string(cache.guests));
  }
  // [position] where a token is
  std::vector<bool> kept(tokens), back(tokens), stowed(tokens);
  std::vector<bool> taken(here.size());
  for (std::size_t slot = 0; slot < here.size(); ++slot) {
    if (here[slot] == no_position) continue;
    kept[static_cast<std::size_t>(here[slot])] = true;
    taken[slot] = true;
  }
  auto const enter = [&](position_t p, std::vector<bool>& there) {
    if (p < 0 || p >= next || there[static_cast<std::size_t>(p)]) {
      refuse("brings a position back twice, or one that its sequence has not reached");
    }
    there[static_cast<std::size_t>(p)] = true;
  };
  for (position_t const p : past.tier_positions) enter(p, stowed);
  for (std::size_t i = 0; i < past.guests.size(); ++i) {
    enter(past.guests[i], back);
    index_t const slot = past.guest_slots[i];
    if (slot < 0 || static_cast<std::size_t>(slot) >= taken.size() ||
        taken[static_cast<std::size_t>(slot)]) {
      refuse("has a token back in slot " + std::to_string(slot) + ", which is not free");
    }
    taken[static_cast<std::size_t>(slot)] = true;
  }
  for (std::size_t p = 0; p < tokens; ++p) {
    bool const released = past.cached[p] == std::byte{0};
    if (past.cached[p] > std::byte{1} || (kept[p] && (released || back[p])) ||
        (released && cache.from_tier && !stowed[p])) {
      refuse("contradicts itself about position " + std::to_string(p));
    }
  }
}

}  // namespace adore
