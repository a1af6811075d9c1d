// SPDX-License-Identifier: Apache-2.0
// What lanes and policy are told of a step's new tokens, and told again when some are rejected.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// The ids and rotary positions of a step's tokens, and the lane states from before they came.
template <eviction_policy P>
class step_tokens {
 public:
  /// Rotary positions, [token].
  std::span<position_t const> rotary() const noexcept { return rotary_; }

  void begin() {
    rotary_.clear();
    if constexpr (reads_tokens<P>) heard_.clear();
  }
  /// A row of the step; its lanes enter next.
  void add(row_tokens const& row) {
    if constexpr (reads_tokens<P>)
      heard_.insert(heard_.end(), row.tokens.begin(), row.tokens.end());
  }
  /// The new tokens of a lane have their slots: now order and policy hear of them.
  void enter(ledger<P>& books, slot_order& order, index_t lane, row_tokens const& row) {
    lane_slots<P> const slots = books.slots_of(lane);
    if constexpr (reads_tokens<P>) {
      if (lane_states_before_.size() <= static_cast<std::size_t>(lane)) {
        lane_states_before_.resize(static_cast<std::size_t>(lane + 1));
      }
      lane_states_before_[static_cast<std::size_t>(lane)] = *slots.lane_state;
    }
    for (index_t j = 0; j < row.count; ++j) {
      index_t const slot = books.new_slots(lane)[static_cast<std::size_t>(j)];
      order.append(lane, slot, slots.positions[slot]);
      if constexpr (reads_tokens<P>) {
        books.policy().hear(slots.state(slot),
                            *slots.lane_state,
                            slots.view(slot),
                            row.tokens[static_cast<std::size_t>(j)]);
      }
      if constexpr (numbers_tokens<P>) {
        slots.rotary[slot] = books.policy().rotary_position(slots.state(slot));
      }
    }
  }
  /// The row's lanes have entered: its tokens have their rotary positions.
  void number(ledger<P> const& books, index_t row, index_t count) {
    [[maybe_unused]] index_t const lane = books.lane(row, 0, 0);
    for (index_t j = 0; j < count; ++j) {
      if constexpr (numbers_tokens<P>) {
        index_t const slot = books.new_slots(lane)[static_cast<std::size_t>(j)];
        rotary_.push_back(books.rotary(lane)[static_cast<std::size_t>(slot)]);
      } else {
        rotary_.push_back(books.next_position(row) + j);
      }
    }
  }
  /// A dense prompt numbers its tokens itself, one after the other.
  void number(position_t rotary) { rotary_.push_back(rotary); }

  /// Takes back what a lane has learned from rejected tokens.
  ///
  /// @param first  number of the row's first token in the step
  void unhear(ledger<P>& books,
              index_t lane,
              index_t first,
              index_t accepted) requires reads_tokens<P> {
    lane_slots<P> const slots = books.slots_of(lane);
    *slots.lane_state = lane_states_before_[static_cast<std::size_t>(lane)];
    for (index_t j = 0; j < accepted; ++j) {
      index_t const slot = books.new_slots(lane)[static_cast<std::size_t>(j)];
      books.policy().hear(slots.state(slot),
                          *slots.lane_state,
                          slots.view(slot),
                          heard_[static_cast<std::size_t>(first + j)]);
    }
  }

 private:
  std::vector<position_t> rotary_;                    // [token]
  std::vector<index_t> heard_;                        // [token] ids, if the policy reads them
  std::vector<lane_state_of<P>> lane_states_before_;  // [lane]
};

}  // namespace adore
