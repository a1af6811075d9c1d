// SPDX-License-Identifier: Apache-2.0
// What is remembered of every token of a sequence, kept or released: its id, to compute it again,
// and what the policy knew of it, to choose it again. Never K/V.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace adore {

/// One sequence. Memory: 5 bytes and a slot state per token.
template <eviction_policy P>
class past_tokens {
 public:
  using slot_state = slot_state_of<P>;

  index_t size() const noexcept { return static_cast<index_t>(ids_.size()); }
  index_t id(position_t p) const { return ids_[at(p)]; }
  slot_state const& state(position_t p) const { return states_[at(p)]; }
  slot_state& state(position_t p) { return states_[at(p)]; }
  /// [position] 1: not there to come back: cached, or lost for good.
  std::span<std::uint8_t const> is_cached() const noexcept { return cached_; }
  index_t released() const noexcept { return released_; }

  void clear() noexcept {
    ids_.clear();
    states_.clear();
    cached_.clear();
    released_ = 0;
  }
  void append(std::span<index_t const> ids) {
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    states_.resize(ids_.size());
    cached_.resize(ids_.size(), 1);
  }
  /// Forgets tokens of a rejected draft, which are still cached.
  void truncate(index_t size) {
    auto const left = static_cast<std::size_t>(size);
    ids_.resize(left);
    states_.resize(left);
    cached_.resize(left);
  }
  /// The token has left the cache; `state` is the last that the policy knew.
  void release(position_t p, slot_state const& state) {
    released_ += cached_[at(p)];
    cached_[at(p)] = 0;
    states_[at(p)] = state;
  }
  /// The token is back for good, or can never come back.
  void keep(position_t p) {
    released_ -= 1 - cached_[at(p)];
    cached_[at(p)] = 1;
  }

  void save(past_snapshot& past) const {
    past.ids = ids_;
    past.cached.resize(cached_.size());
    past.states.resize(states_.size() * bytes_per_state);
    std::transform(cached_.begin(), cached_.end(), past.cached.begin(), [](std::uint8_t is) {
      return static_cast<std::byte>(is);
    });
    if constexpr (bytes_per_state > 0) {
      std::memcpy(past.states.data(), states_.data(), past.states.size());
    }
  }
  /// @pre `past` is sound
  void load(past_snapshot const& past) {
    clear();
    append(past.ids);
    if constexpr (bytes_per_state > 0) {
      std::memcpy(states_.data(), past.states.data(), past.states.size());
    }
    for (std::size_t p = 0; p < cached_.size(); ++p) {
      cached_[p] = static_cast<std::uint8_t>(past.cached[p]);
      released_ += 1 - cached_[p];
    }
  }
  /// Of a state in a snapshot, 0 if the policy keeps none.
  static constexpr std::size_t bytes_per_state =
      std::is_empty_v<slot_state> ? 0 : sizeof(slot_state);

 private:
  static std::size_t at(position_t p) noexcept { return static_cast<std::size_t>(p); }

  std::vector<index_t> ids_;          // [position]
  std::vector<slot_state> states_;    // [position], of released tokens
  std::vector<std::uint8_t> cached_;  // [position]
  index_t released_ = 0;
};

}  // namespace adore
