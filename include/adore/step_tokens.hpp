// SPDX-License-Identifier: Apache-2.0
// What lanes and policy are told of a step's new tokens, and told again when some are rejected.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/token_scores.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// The ids, rotary positions and scores of a step's tokens, and the lane states from before they
/// came.
template <eviction_policy P>
class step_tokens {
 public:
  /// Rotary positions, [token].
  std::span<position_t const> rotary() const noexcept { return rotary_; }

  void begin() {
    rotary_.clear();
    if constexpr (reads_tokens<P>) heard_.clear();
    waiting_.begin();
  }
  /// A row's new tokens take their places in its lanes; order and policy hear of them.
  void enter(ledger<P>& books, slot_order& order, row_tokens const& row) {
    if constexpr (reads_tokens<P>) {
      heard_.insert(heard_.end(), row.tokens.begin(), row.tokens.end());
    }
    books.for_lanes(row.row, [&](index_t lane) {
      books.place(lane, row.count);
      if (books.placed() == placement::by_ledger) enter_lane(books, order, lane, row);
    });
    number_new(books, row.row, row.count);
    if constexpr (scores_tokens<P>) score(books, row);
  }
  /// In a store that chooses slots itself they enter one by one; their scores have waited for it.
  ///
  /// @param j     which new token of the row
  /// @param slot  where it is
  void enter_placed(ledger<P>& books, slot_order& order, index_t lane, index_t j, index_t slot) {
    books.report_placed(lane, j, slot);
    index_t const row = books.row_of(lane);
    position_t const position = books.next_position(row) + j;
    order.append(lane, slot, position);
    if constexpr (scores_tokens<P>) {
      token_scores const scores =
          waiting_.of(row, books.shape(), books.layer_of(lane), books.head_of(lane));
      if (scores.has(position)) {
        books.policy().score(books.slots_of(lane).state(slot), scores.of(position));
      }
    }
  }
  /// One more token has a rotary position: one of a dense prompt, or one that is computed again.
  void number(position_t rotary) { rotary_.push_back(rotary); }

  /// Takes back what a lane has learned from a row's tokens but the first `accepted`.
  void reject(ledger<P>& books, index_t lane, row_step const& step, index_t accepted) const {
    if constexpr (reads_tokens<P>) {
      if (accepted == step.count) return;
      lane_slots<P> const slots = books.slots_of(lane);
      *slots.lane_state = lane_states_before_[static_cast<std::size_t>(lane)];
      for (index_t j = 0; j < accepted; ++j) {
        index_t const slot = books.new_slots(lane)[static_cast<std::size_t>(j)];
        books.policy().hear(slots.state(slot),
                            *slots.lane_state,
                            slots.view(slot),
                            heard_[static_cast<std::size_t>(step.first + j)]);
      }
    }
  }

 private:
  void enter_lane(ledger<P>& books, slot_order& order, index_t lane, row_tokens const& row) {
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
  void number_new(ledger<P> const& books, index_t row, index_t count) {
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
  /// The row's scores reach the tokens that are in its lanes.
  void score(ledger<P>& books, row_tokens const& row) requires scores_tokens<P> {
    if (row.scores.empty()) return;
    position_t const next = books.next_position(row.row);
    books.for_lanes(row.row, [&](index_t lane) {
      give_scores(
          books.policy(),
          books.slots_of(lane),
          scores_of(
              row, books.shape(), books.layer_of(lane), books.head_of(lane), next + row.count - 1));
    });
    if (books.placed() == placement::by_store) waiting_.keep(row, next);
  }

  std::vector<position_t> rotary_;                    // [token]
  std::vector<index_t> heard_;                        // [token] ids, if the policy reads them
  std::vector<lane_state_of<P>> lane_states_before_;  // [lane]
  waiting_scores waiting_;
};

}  // namespace adore
