// SPDX-License-Identifier: Apache-2.0
// Who sits in which slot: positions, policy state and budgets of every lane. Never holds K/V.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/free_slots.hpp"
#include "adore/eviction/lane_layout.hpp"
#include "adore/eviction/lane_memory.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/release_log.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/sequence_rows.hpp"
#include "adore/eviction/victim_search.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// Who chooses the slot of a new token: the ledger, or a store that reports its own choice.
enum class placement : std::uint8_t { by_ledger, by_store };

/// The books of a cache: lanes of all rows, their tokens, and the decision at the end of a step.
///
/// A step is `place` for each lane, then `commit` for each lane, then `advance` for the row.
template <eviction_policy P>
class ledger {
 public:
  using slot_state = slot_state_of<P>;
  using lane_state = lane_state_of<P>;

  /// @param shape    rows, layers, KV heads and slots per lane; channels are not looked at
  /// @param max_new  new tokens that a step may bring
  /// @param guests   released tokens that may be back in a lane at the same time
  ledger(P policy,
         kv_shape const& shape,
         scope reach,
         index_t max_new,
         placement placed = placement::by_ledger,
         index_t guests = 0)
      : policy_(policy),
        layout_(shape, reach),
        max_new_(max_new),
        most_guests_(guests),
        placement_(placed),
        rows_(shape.sequences),
        lanes_(static_cast<std::size_t>(layout_.lanes())),
        memory_(layout_.lanes(), shape.slots),
        free_(layout_.lanes(), shape.slots),
        new_slots_(lanes_.size() * static_cast<std::size_t>(max_new)),
        search_(layout_.lanes(), shape.slots) {}

  // ---------------------------------------------------------------- where things are

  P const& policy() const noexcept { return policy_; }
  kv_shape const& shape() const noexcept { return layout_.shape(); }
  scope reach() const noexcept { return layout_.reach(); }
  index_t slots() const noexcept { return shape().slots; }
  index_t max_new() const noexcept { return max_new_; }
  index_t lanes_per_row() const noexcept { return layout_.per_row(); }
  index_t lane_layers() const noexcept { return layout_.layers(); }
  index_t lane_heads() const noexcept { return layout_.heads(); }

  index_t lane(index_t row, index_t layer, index_t kv_head) const noexcept {
    return layout_.lane(row, layer, kv_head);
  }
  index_t row_of(index_t lane) const noexcept { return layout_.row_of(lane); }
  index_t layer_of(index_t lane) const noexcept { return layout_.layer_of(lane); }
  index_t head_of(index_t lane) const noexcept { return layout_.head_of(lane); }
  lane_extent extent_of(index_t lane) const noexcept { return layout_.extent_of(lane); }
  /// Calls `action(lane)` for each lane of a row, in ascending order.
  template <class Action>
  void for_lanes(index_t row, Action&& action) const {
    layout_.for_lanes(row, action);
  }

  // ---------------------------------------------------------------- what is there

  bool is_open(index_t row) const noexcept { return rows_.is_open(row); }
  /// Position of the next token of the row's sequence = tokens seen so far.
  position_t next_position(index_t row) const noexcept { return rows_.next(row); }
  index_t occupied(index_t lane) const noexcept { return at(lanes_, lane).occupied; }
  index_t budget(index_t lane) const noexcept { return at(lanes_, lane).budget; }
  /// Slots that hold neither a token nor a guest.
  index_t room(index_t lane) const noexcept {
    return slots() - at(lanes_, lane).occupied - at(lanes_, lane).guests;
  }

  /// [slot]; `no_position` where the slot is free, `guest_mark(position)` where a guest is.
  std::span<position_t const> positions(index_t lane) const noexcept {
    return memory_.positions(lane);
  }
  std::span<position_t const> rotary(index_t lane) const noexcept { return memory_.rotary(lane); }
  /// Positions of the tokens in the lane, ascending.
  std::vector<position_t> kept(index_t lane) const {
    std::vector<position_t> result;
    for (position_t const p : positions(lane)) {
      if (p >= 0) result.push_back(p);
    }
    std::sort(result.begin(), result.end());
    return result;
  }
  /// Slots of the step's new tokens, in the order of their positions.
  std::span<index_t const> new_slots(index_t lane) const noexcept {
    return {new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_,
            static_cast<std::size_t>(at(lanes_, lane).new_count)};
  }
  /// The slots that `place` and then `invite` give next, in no order; fewer if the lane has fewer.
  std::span<index_t const> next_slots(index_t lane, index_t count) const noexcept {
    return free_.next(lane, count);
  }
  /// Free slots for which `preferred(slot)` holds are given first, the lowest before the others.
  template <class Preferred>
  void prefer_slots(index_t lane, Preferred&& preferred) {
    free_.prefer(lane, preferred);
  }
  /// What left all lanes since the last `forget_released`.
  std::span<released_token const> released() const noexcept { return released_.tokens(); }
  void forget_released() noexcept { released_.clear(); }

  lane_slots<P> slots_of(index_t lane) noexcept { return memory_.slots_of(lane); }
  lane_view view_of(index_t lane, position_t newest) const noexcept {
    lane_record const& record = at(lanes_, lane);
    return {newest,
            record.occupied,
            record.budget,
            layer_of(lane),
            head_of(lane),
            rows_.seed(row_of(lane))};
  }

  // ---------------------------------------------------------------- life of a sequence

  /// @throws std::logic_error unless the row holds a sequence
  void require_open(index_t row, char const* what) const { rows_.require_open(row, what); }
  /// @throws std::length_error if the row's sequence ends before `count` more tokens
  void require_before_end(index_t row, index_t count) const {
    rows_.require_before_end(row, count);
  }

  /// @throws std::logic_error if the row is occupied
  void open(index_t row, std::uint64_t seed) {
    rows_.require_free(row, "open");
    rows_.open(row, seed, 0);
    for_lanes(row, [&](index_t lane) {
      // two statements: nvcc 13.0 assigns `= {.budget = x}` to the first member, whatever its name
      at(lanes_, lane) = {};
      at(lanes_, lane).budget = initial_budget(layer_of(lane), head_of(lane));
      memory_.clear(lane);
      search_.clear(lane);
      refill_free(lane);
    });
  }
  void close(index_t row) {
    require_open(row, "close");
    rows_.close(row);
    for_lanes(row, [&](index_t lane) {
      at(lanes_, lane) = {};
      memory_.clear(lane);
    });
  }
  /// `to` becomes a copy of `from`: same tokens in the same slots, same state, same seed.
  void fork(index_t from, index_t to) {
    require_open(from, "fork");
    rows_.require_free(to, "fork");
    rows_.copy(from, to);
    for_lanes(from, [&](index_t lane) {
      index_t const twin = lane + (to - from) * lanes_per_row();
      at(lanes_, twin) = at(lanes_, lane);
      memory_.copy(lane, twin);
      free_.copy(lane, twin);
      search_.copy(lane, twin);
    });
  }

  row_snapshot snapshot(index_t row) const {
    require_open(row, "snapshot");
    row_snapshot saved{.reach = reach(), .next = rows_.next(row), .seed = rows_.seed(row)};
    for_lanes(row, [&](index_t lane) {
      auto const here = positions(lane);
      auto const turned = rotary(lane);
      saved.budgets.push_back(budget(lane));
      for (position_t const p : here) {
        saved.positions.push_back(is_guest(p) ? no_position : p);  // guests are not saved
      }
      saved.rotary.insert(saved.rotary.end(), turned.begin(), turned.end());
      memory_.save_states(lane, saved.slot_states, saved.lane_states);
    });
    return saved;
  }
  /// Opens `row` as it was saved, in this or another cache of the same set-up.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit, or
  ///         contradicts itself
  void restore(index_t row, row_snapshot const& saved) {
    require_sound(saved,
                  {reach(),
                   static_cast<std::size_t>(lanes_per_row()),
                   static_cast<std::size_t>(slots()),
                   lane_memory<P>::bytes_per_slot_state,
                   lane_memory<P>::bytes_per_lane_state});
    open(row, saved.seed);
    rows_.advance(row, saved.next);
    for_lanes(row, [&](index_t lane) {
      auto const i = static_cast<std::size_t>(lane - row * lanes_per_row());
      std::size_t const cell = i * static_cast<std::size_t>(slots());
      memory_.load(lane,
                   saved.positions.data() + cell,
                   saved.rotary.data() + cell,
                   saved.slot_states.data() + cell * lane_memory<P>::bytes_per_slot_state,
                   saved.lane_states.data() + i * lane_memory<P>::bytes_per_lane_state);
      auto const here = positions(lane);
      at(lanes_, lane).budget = saved.budgets[i];
      at(lanes_, lane).occupied = static_cast<index_t>(
          std::count_if(here.begin(), here.end(), [](position_t p) { return p >= 0; }));
      refill_free(lane);
      index_queue(lane);
    });
  }

  // ---------------------------------------------------------------- guests

  /// Gives a slot to a released token that is back for a while: attended, but no candidate for
  /// release, and not counted against the budget.
  ///
  /// @param state  what the policy knows of it
  /// @throws std::length_error if the lane has no free slot
  index_t invite(index_t lane, position_t position, slot_state const& state) {
    if (free_.count(lane) == 0) refuse_room(lane, 0, 1);
    index_t const slot = free_.pop(lane);
    memory_.put(lane, slot, position);
    lane_slots<P> const slots = slots_of(lane);
    slots.positions[slot] = guest_mark(position);
    slots.state(slot) = state;
    ++at(lanes_, lane).guests;
    return slot;
  }
  /// The guest leaves.
  void dismiss(index_t lane, index_t slot) {
    slots_of(lane).positions[slot] = no_position;
    --at(lanes_, lane).guests;
    free_.push(lane, slot);
  }
  /// The guest becomes a token of the lane like any other, before the step's `commit`.
  void admit(index_t lane, index_t slot) {
    position_t& here = slots_of(lane).positions[slot];
    here = guest_mark(here);
    --at(lanes_, lane).guests;
    ++at(lanes_, lane).occupied;
  }

  // ---------------------------------------------------------------- one step of one lane

  /// Gives slots to `count` new tokens, whose positions follow the row's last one.
  ///
  /// @throws std::length_error if the lane has too few free slots, or the sequence is at its end
  void place(index_t lane, index_t count) {
    lane_record& record = at(lanes_, lane);
    index_t const row = row_of(lane);
    require_before_end(row, count);
    record.new_count = count;
    if (placement_ == placement::by_store) {
      std::fill_n(new_slots_.begin() + static_cast<std::ptrdiff_t>(lane) * max_new_, count, -1);
      return;
    }
    if (count > free_.count(lane)) refuse_room(lane, free_.count(lane), count);
    for (index_t j = 0; j < count; ++j) occupy(lane, j, free_.pop(lane), rows_.next(row) + j);
  }
  /// A store that chooses for itself says where the step's j-th new token of this lane went.
  void report_placed(index_t lane, index_t j, index_t slot) {
    require_slot(slot);
    assert(placement_ == placement::by_store);
    auto const fresh = new_slots(lane);
    if (j < 0 || j >= static_cast<index_t>(fresh.size()) ||
        fresh[static_cast<std::size_t>(j)] >= 0) {
      throw std::logic_error("adore: placed: new token " + std::to_string(j) + " of lane " +
                             std::to_string(lane) + " is none of the step's " +
                             std::to_string(fresh.size()) + ", or has its slot already");
    }
    occupy(lane, j, slot, rows_.next(row_of(lane)) + j);
  }
  /// A store that moved its tokens says where they are now: new_slot_of[old slot], -1 for a free
  /// one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    auto const here = positions(lane);
    for (std::size_t slot = 0; slot < here.size(); ++slot) {
      if (here[slot] != no_position) require_slot(new_slot_of[slot]);
    }
    memory_.move(lane, new_slot_of);
    refill_free(lane);
    index_queue(lane);
  }

  /// Ends a lane's step: keeps the first `accepted` new tokens, lets the policy observe, selects.
  ///
  /// @param weights  [slot], see `observe_and_rank`; nullptr if the policy does not observe
  void commit(index_t lane, index_t accepted, float const* weights) {
    lane_record& record = at(lanes_, lane);
    position_t const next = rows_.next(row_of(lane));
    index_t const* const fresh = new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_;
    lane_slots<P> const slots = slots_of(lane);
    for (index_t j = record.new_count; j-- > accepted;) {
      slots.positions[fresh[j]] = no_position;
      --record.occupied;
      give_back(lane, fresh[j]);
    }
    record.new_count = 0;
    if (accepted == 0) return;
    lane_view const view = view_of(lane, next + accepted - 1);
    auto const book_out = [&](victim const& gone) { forget(lane, record, gone); };
    if constexpr (observes_attention<P>) {
      search_.observe_and_select(policy_, slots, view, weights, accepted, book_out);
    } else {
      for (index_t j = 0; j < accepted; ++j) search_.arrive(policy_, lane, slots, fresh[j], view);
      search_.select(policy_, lane, slots, view, book_out);
    }
  }
  /// The row's step is over: its sequence is `accepted` tokens longer.
  void advance(index_t row, index_t accepted) { rows_.advance(row, accepted); }

  // ---------------------------------------------------------------- decisions outside a step

  /// Changes a lane's budget; a smaller one releases by the policy's rule at once, a larger one
  /// does not bring anything back.
  void set_budget(index_t lane, index_t budget) {
    if (budget < 0) {
      throw std::invalid_argument("adore: budget = " + std::to_string(budget) +
                                  ": must not be negative");
    }
    if (placement_ == placement::by_ledger && budget != unbounded &&
        budget > slots() - max_new_ - most_guests_) {
      throw std::invalid_argument("adore: budget = " + std::to_string(budget) + ": the store has " +
                                  std::to_string(slots()) +
                                  " slots per lane and a step may bring " +
                                  std::to_string(max_new_ + most_guests_) + " tokens");
    }
    at(lanes_, lane).budget = budget;
    shrink(lane, budget);
  }
  /// Releases by the policy's rule until at most `room` tokens are left, whatever the budget.
  void shrink(index_t lane, index_t room) {
    position_t const newest = rows_.next(row_of(lane)) - 1;
    if (newest < 0) return;
    lane_slots<P> const slots = slots_of(lane);
    lane_view view = view_of(lane, newest);
    search_.rebuild(policy_, lane, slots, view);
    view.budget = room;
    search_.select(policy_, lane, slots, view, [&](victim const& gone) {
      forget(lane, at(lanes_, lane), gone);
    });
  }

  /// Fills an empty lane with what a prompt's selection kept.
  ///
  /// @param kept  ascending positions; they go to the slots 0, 1, ...
  /// @throws std::length_error, with nothing changed, if they are more than the lane has slots
  void adopt(index_t lane,
             std::span<position_t const> kept,
             std::span<position_t const> rotary,
             std::span<slot_state const> states) {
    lane_record& record = at(lanes_, lane);
    assert(record.occupied == 0);
    if (kept.size() > static_cast<std::size_t>(slots())) refuse_prompt(kept.size(), slots());
    lane_slots<P> const here = slots_of(lane);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      here.positions[i] = kept[i];
      here.rotary[i] = rotary[i];
      here.state(static_cast<index_t>(i)) = states[i];
    }
    record.occupied = static_cast<index_t>(kept.size());
    refill_free(lane);
  }
  /// What `adopt` says, for those who can tell before.
  [[noreturn]] static void refuse_prompt(std::size_t stay, index_t slots) {
    throw std::length_error("adore: begin_prompt: " + std::to_string(stay) +
                            " tokens of the prompt stay; a lane has " + std::to_string(slots) +
                            " slots");
  }
  /// Sets a budget without looking at what is in the lane.
  void assign_budget(index_t lane, index_t budget) {
    if (budget > slots() - max_new_ - most_guests_) {
      throw std::length_error("adore: a lane's share of the budget is " + std::to_string(budget) +
                              " tokens; the store has " + std::to_string(slots()) +
                              " slots per lane");
    }
    at(lanes_, lane).budget = budget;
  }
  /// After `adopt` and `advance`: what the policy keeps beside the slots.
  void finish_prompt(index_t lane) {
    index_queue(lane);
    if constexpr (marks_tokens<P>) mark(policy_, slots_of(lane), last_view_of(lane));
  }
  void log_release(index_t lane, index_t slot, position_t position) {
    released_.append({lane, slot, position});
  }
  /// Orders the candidates anew from what the lane holds (after `adopt`, `move`, a load).
  void index_queue(index_t lane) {
    search_.rebuild(policy_, lane, slots_of(lane), last_view_of(lane));
  }

 private:
  struct lane_record {
    index_t occupied = 0, budget = 0, new_count = 0, guests = 0;
  };

  template <class T>
  static T& at(std::vector<T>& data, index_t i) noexcept {
    return data[static_cast<std::size_t>(i)];
  }
  template <class T>
  static T const& at(std::vector<T> const& data, index_t i) noexcept {
    return data[static_cast<std::size_t>(i)];
  }
  /// The lane as the newest token of its sequence has left it.
  lane_view last_view_of(index_t lane) const noexcept {
    return view_of(lane, rows_.next(row_of(lane)) - 1);
  }
  void require_slot(index_t slot) const {
    if (slot < 0 || slot >= slots()) {
      throw std::invalid_argument("adore: slot = " + std::to_string(slot) +
                                  ": the lane has slots 0 to " + std::to_string(slots() - 1));
    }
  }
  // Sentences are made elsewhere: their strings would cost `place` a large stack frame.
  [[noreturn]] static void refuse_room(index_t lane, index_t free, index_t count) {
    throw std::length_error(
        "adore: lane " + std::to_string(lane) + " has " + std::to_string(free) +
        " free slots for " + std::to_string(count) +
        " new tokens; give the store slots for the budget plus the new tokens of a step, or for "
        "the whole sequence if the policy keeps everything");
  }
  [[noreturn]] static void refuse_slot(index_t lane, index_t slot, position_t held) {
    throw std::logic_error("adore: slot " + std::to_string(slot) + " of lane " +
                           std::to_string(lane) + " holds position " + std::to_string(held) +
                           " already");
  }
  index_t initial_budget(index_t layer, index_t kv_head) const {
    if constexpr (budgets_lanes<P>) {
      return policy_.lane_budget(shape(), layer, kv_head);
    } else {
      return policy_.budget();
    }
  }
  void refill_free(index_t lane) {
    if (placement_ == placement::by_ledger) free_.refill(lane, positions(lane));
  }
  void give_back(index_t lane, index_t slot) {
    if (placement_ == placement::by_store) return;  // it knows which of its slots are free
    free_.push(lane, slot);
  }
  void occupy(index_t lane, index_t j, index_t slot, position_t position) {
    position_t const held = positions(lane)[static_cast<std::size_t>(slot)];
    if (held != no_position) refuse_slot(lane, slot, held);
    memory_.put(lane, slot, position);
    new_slots_[static_cast<std::size_t>(lane * max_new_ + j)] = slot;
    ++at(lanes_, lane).occupied;
  }
  /// Books a token out whose slot has been freed.
  void forget(index_t lane, lane_record& record, victim const& gone) {
    log_release(lane, gone.slot, gone.position);
    --record.occupied;
    give_back(lane, gone.slot);
  }

  P policy_;
  lane_layout layout_;
  index_t max_new_, most_guests_;
  placement placement_;
  sequence_rows rows_;
  std::vector<lane_record> lanes_;
  lane_memory<P> memory_;
  free_slots free_;
  std::vector<index_t> new_slots_;  // [lane, max_new]
  release_log released_;
  victim_search<P> search_;
};

}  // namespace adore
