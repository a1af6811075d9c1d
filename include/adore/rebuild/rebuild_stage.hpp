// SPDX-License-Identifier: Apache-2.0
// Before a step: which released tokens come back, by which schedule; after it: which of them stay.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/order_key.hpp"
#include "adore/rebuild/choose.hpp"
#include "adore/rebuild/past_tokens.hpp"
#include "adore/rebuild/schedule.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <variant>
#include <vector>

namespace adore {

/// How much a cache has brought back since it was made.
struct rebuild_counts {
  std::uint64_t computed = 0;  ///< rows that the model had to compute again
  std::uint64_t entered = 0;   ///< tokens that were not there in the step before
  std::uint64_t deferred = 0;  ///< wanted tokens that had to wait for a row of the pool
};

/// Source: policies.md 13. One lane per row: a token passes through all layers.
template <eviction_policy P>
class rebuild_stage {
 public:
  /// @param by_slot  those who come back get slots; else the store finds room for them, and the
  ///                 books know of none
  rebuild_stage(rebuild_options const& options, index_t rows, bool by_slot = true)
      : options_(options),
        by_slot_(by_slot),
        past_(options.count > 0 ? static_cast<std::size_t>(rows) : 0),
        guests_(past_.size()),
        wanted_(past_.size()),
        phases_(past_.size(), 0) {
    if (auto const* const entry = std::get_if<on_entry>(&options.schedule)) {
      pool_ = entry->pool_for(rows);
    }
  }

  bool active() const noexcept { return options_.count > 0; }
  bool restores() const noexcept { return std::holds_alternative<restore>(options_.schedule); }
  /// Bytes that the tier may hold, 0 without one.
  std::size_t tier_limit() const noexcept {
    auto const* const wanted = std::get_if<restore>(&options_.schedule);
    return wanted != nullptr ? wanted->limit_bytes : 0;
  }
  rebuild_counts const& counts() const noexcept { return counts_; }
  /// Those that enter in this step, row after row, ascending.
  std::span<rebuilt_token const> entering() const noexcept { return entering_; }
  past_tokens<P>& past(index_t row) { return past_[static_cast<std::size_t>(row)]; }
  past_tokens<P> const& past(index_t row) const { return past_[static_cast<std::size_t>(row)]; }

  void open(index_t row) {
    if (!active()) return;
    past(row).clear();
    guests(row).clear();
    phase(row) = row;  // rows that are opened together take turns
  }
  void fork(index_t from, index_t to) {
    if (!active()) return;
    past(to) = past(from);
    guests(to) = guests(from);
    phase(to) = phase(from);
  }
  past_snapshot save(index_t row) const {
    past_snapshot saved;
    saved.phase = phases_[static_cast<std::size_t>(row)];
    past(row).save(saved);
    for (guest const& one : guests_[static_cast<std::size_t>(row)]) {
      saved.guests.push_back(one.position);
      saved.guest_slots.push_back(one.slot);
    }
    return saved;
  }
  /// Into a row whose books have been restored: those that were back get their slots again.
  ///
  /// @pre `saved` is sound
  void load(ledger<P>& books, index_t row, past_snapshot const& saved) {
    past(row).load(saved);
    phase(row) = saved.phase;
    guests(row).clear();
    index_t const lane = books.lane(row, 0, 0);
    for (std::size_t i = 0; i < saved.guests.size(); ++i) {
      index_t const slot = saved.guest_slots[i];
      slot_state_of<P> const state = books.slots_of(lane).state(slot);  // as it has been loaded
      books.prefer_slots(lane, [slot](index_t free) { return free == slot; });
      books.invite(lane, saved.guests[i], state);
      guests(row).push_back({saved.guests[i], slot});
    }
  }

  void begin() noexcept { entering_.clear(); }
  /// The rows of the step have their new tokens: chooses who comes back, and gives them slots.
  template <class Rows>
  void choose(ledger<P>& books, slot_order& order, Rows const& rows) {
    if (!active()) return;
    wishes_.clear();
    for (auto const& row : rows) wish(books, row.row, row.count);
    // the best first, whichever row they are in; equals in the order of rows
    std::stable_sort(
        wishes_.begin(), wishes_.end(), [](auto const& a, auto const& b) { return a.key > b.key; });
    index_t left = pool_;
    for (wish_of_row const& one : wishes_) {
      if (left == 0) {
        ++counts_.deferred;
        continue;
      }
      enter(books, order, one.row, one.position);
      if (pool_ != unbounded) --left;
    }
    std::sort(entering_.begin(), entering_.end(), [](auto const& a, auto const& b) {
      return a.row != b.row ? a.row < b.row : a.position < b.position;
    });
    if (!restores()) counts_.computed += entering_.size();
  }

  /// Before the row's `commit`: tokens that came back observe, compete, or leave.
  ///
  /// @param accepted  new tokens that stay; 0: nothing competes
  /// @param weights   as for `ledger::commit`
  void settle(
      ledger<P>& books, slot_order& order, index_t row, index_t accepted, float const* weights) {
    if (!active()) return;
    index_t const lane = books.lane(row, 0, 0);
    if constexpr (observes_attention<P>) {
      if (options_.score == rebuilt_score::accumulate && accepted > 0) {
        lane_view const view = books.view_of(lane, books.next_position(row) + accepted - 1);
        for (guest const& one : guests(row)) {
          books.policy().observe(past(row).state(one.position),
                                 {one.position, one.position},
                                 view,
                                 weights[one.slot],
                                 accepted);
        }
      }
    }
    if (options_.admit == rebuild_admission::compete && accepted > 0) {
      for (guest const& one : guests(row)) {
        books.admit(lane, one.slot);
        past(row).keep(one.position);
      }
      guests(row).clear();
      books.index_queue(lane);
    } else if (std::holds_alternative<every_step>(options_.schedule)) {
      while (!guests(row).empty()) leave(books, order, row, guests(row).size() - 1);
    }
    past(row).truncate(books.next_position(row) + accepted);
  }
  /// After the row's `commit`, or another decision: what the policy has released may come back.
  void follow(ledger<P>& books) {
    if (!active()) return;
    for (released_token const& gone : books.released()) {
      past(books.row_of(gone.lane))
          .release(gone.position, books.slots_of(gone.lane).state(gone.slot));
    }
  }
  /// ... after a dense prompt.
  ///
  /// @param states  [position] what the policy knows of the prompt's tokens
  void follow_prompt(ledger<P>& books, index_t row, std::span<slot_state_of<P> const> states) {
    if (!active()) return;
    for (released_token const& gone : books.released()) {
      past(row).release(gone.position, states[static_cast<std::size_t>(gone.position)]);
    }
  }

 private:
  struct guest {
    position_t position;
    index_t slot;
  };
  struct wish_of_row {
    std::uint64_t key;
    index_t row;
    position_t position;
  };

  index_t& phase(index_t row) { return phases_[static_cast<std::size_t>(row)]; }
  std::vector<guest>& guests(index_t row) { return guests_[static_cast<std::size_t>(row)]; }
  guest const* find_guest(index_t row, position_t position) {
    auto const& here = guests(row);
    auto const found = std::find_if(
        here.begin(), here.end(), [=](guest const& one) { return one.position == position; });
    return found == here.end() ? nullptr : &*found;
  }

  /// Adds to the wishes whom the row wants back and has not; by `every` also whom it has, since all
  /// are computed anew.
  void wish(ledger<P>& books, index_t row, index_t count) {
    auto const* const periodic = std::get_if<every>(&options_.schedule);
    if (periodic != nullptr) {
      index_t const now = phase(row);
      phase(row) = (now + 1) % periodic->steps;
      if (now % periodic->steps != 0) return;
    }
    index_t const lane = books.lane(row, 0, 0);
    lane_view view = books.view_of(lane, books.next_position(row) + count - 1);
    if (!by_slot_) view.occupied += count;  // they are not placed yet
    past_tokens<P> const& all = past(row);
    if (all.released() == 0) return;
    auto const& lane_state = *books.slots_of(lane).lane_state;
    priorities_.resize(static_cast<std::size_t>(all.size()));
    for (position_t p = 0; p < all.size(); ++p) {
      if (all.is_cached()[static_cast<std::size_t>(p)] != 0) continue;
      priorities_[static_cast<std::size_t>(p)] =
          priority_of(books.policy(), slot_view{p, p}, view, all.state(p), lane_state);
    }
    std::vector<position_t>& wanted = wanted_[static_cast<std::size_t>(row)];
    wanted.resize(static_cast<std::size_t>(options_.count));
    index_t const found = choose_rebuilt(priorities_, all.is_cached(), options_.count, wanted);
    wanted.resize(static_cast<std::size_t>(found));
    for (position_t const p : wanted) {
      if (periodic == nullptr && find_guest(row, p) != nullptr) continue;
      wishes_.push_back({order_key(priorities_[static_cast<std::size_t>(p)], p), row, p});
    }
  }
  void enter(ledger<P>& books, slot_order& order, index_t row, position_t position) {
    if (!by_slot_) {
      entering_.push_back({row, position, past(row).id(position), -1});
      ++counts_.entered;
      return;
    }
    if (guest const* const here = find_guest(row, position)) {  // computed anew where it is
      entering_.push_back({row, position, past(row).id(position), here->slot});
      return;
    }
    if (guests(row).size() == static_cast<std::size_t>(options_.count)) {
      make_room(books, order, row);
    }
    index_t const lane = books.lane(row, 0, 0);
    index_t const slot = books.invite(lane, position, past(row).state(position));
    order.insert(lane, slot, position);
    guests(row).push_back({position, slot});
    entering_.push_back({row, position, past(row).id(position), slot});
    ++counts_.entered;
  }
  /// The oldest guest that the row no longer wants leaves: one that is wanted never has to.
  void make_room(ledger<P>& books, slot_order& order, index_t row) {
    auto const& wanted = wanted_[static_cast<std::size_t>(row)];
    auto const& here = guests(row);
    std::size_t i = 0;
    while (std::binary_search(wanted.begin(), wanted.end(), here[i].position)) ++i;
    leave(books, order, row, i);
  }
  void leave(ledger<P>& books, slot_order& order, index_t row, std::size_t i) {
    guest const gone = guests(row)[i];
    guests(row).erase(guests(row).begin() + static_cast<std::ptrdiff_t>(i));
    index_t const lane = books.lane(row, 0, 0);
    order.remove(lane, gone.position);
    books.dismiss(lane, gone.slot);
  }

  rebuild_options options_;
  bool by_slot_;
  index_t pool_ = unbounded;
  std::vector<past_tokens<P>> past_;             // [row]
  std::vector<std::vector<guest>> guests_;       // [row], in the order in which they entered
  std::vector<std::vector<position_t>> wanted_;  // [row], ascending
  std::vector<index_t> phases_;                  // [row] `every`: its turn at 0
  std::vector<rebuilt_token> entering_;
  rebuild_counts counts_;
  // scratch of `choose`
  std::vector<float> priorities_;  // [position]
  std::vector<wish_of_row> wishes_;
};

}  // namespace adore
