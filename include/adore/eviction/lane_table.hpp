// SPDX-License-Identifier: Apache-2.0
// The slots of every lane: which are free, who sits in the others, who has come in this step, and
// how many may stay. Knows nothing of sequences and decides nothing.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/free_slots.hpp"
#include "adore/eviction/lane_memory.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/row_snapshot.hpp"
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

template <eviction_policy P>
class lane_table {
 public:
  using slot_state = slot_state_of<P>;

  /// @param max_new, guests  tokens that a step may bring into a lane: new ones, and those that
  ///                         come back
  lane_table(index_t lanes, index_t slots, index_t max_new, index_t guests, placement placed)
      : max_new_(max_new),
        arrivals_(max_new + guests),
        placement_(placed),
        lanes_(static_cast<std::size_t>(lanes)),
        memory_(lanes, slots),
        free_(lanes, slots),
        new_slots_(lanes_.size() * static_cast<std::size_t>(max_new)) {}

  // ---------------------------------------------------------------- what is there

  index_t slots() const noexcept { return memory_.slots(); }
  index_t max_new() const noexcept { return max_new_; }
  /// Tokens that a step may bring into a lane.
  index_t arrivals() const noexcept { return arrivals_; }
  placement placed() const noexcept { return placement_; }
  index_t occupied(index_t lane) const noexcept { return at(lane).occupied; }
  index_t budget(index_t lane) const noexcept { return at(lane).budget; }
  /// Looks at nothing that is in the lane.
  void assign_budget(index_t lane, index_t budget) noexcept { at(lane).budget = budget; }
  /// Slots that hold neither a token nor a guest.
  index_t room(index_t lane) const noexcept {
    return slots() - at(lane).occupied - at(lane).guests;
  }
  /// [slot]; `no_position` where the slot is free, `guest_mark(position)` where a guest is.
  std::span<position_t const> positions(index_t lane) const noexcept {
    return memory_.positions(lane);
  }
  std::span<position_t const> rotary(index_t lane) const noexcept { return memory_.rotary(lane); }
  /// Positions of the tokens, ascending.
  std::vector<position_t> kept(index_t lane) const {
    std::vector<position_t> result;
    for (position_t const p : positions(lane)) {
      if (p >= 0) result.push_back(p);
    }
    std::sort(result.begin(), result.end());
    return result;
  }
  lane_slots<P> slots_of(index_t lane) noexcept { return memory_.slots_of(lane); }
  /// Slots of the step's new tokens, in the order of their positions.
  std::span<index_t const> new_slots(index_t lane) const noexcept {
    return {fresh(lane), static_cast<std::size_t>(at(lane).new_count)};
  }
  free_slots const& free() const noexcept { return free_; }
  free_slots& free() noexcept { return free_; }

  // ---------------------------------------------------------------- lanes as a whole

  void begin(index_t lane, index_t budget) {
    // two statements: nvcc 13.0 assigns `= {.budget = x}` to the first member, whatever its name
    at(lane) = {};
    at(lane).budget = budget;
    memory_.clear(lane);
    refill_free(lane);
  }
  void end(index_t lane) {
    at(lane) = {};
    memory_.clear(lane);
  }
  void copy(index_t from, index_t to) {
    at(to) = at(from);
    memory_.copy(from, to);
    free_.copy(from, to);
  }
  /// Appends a lane to those of a row that are saved already; guests are not saved.
  void save(index_t lane, row_snapshot& row) const {
    row.budgets.push_back(budget(lane));
    for (position_t const p : positions(lane)) {
      row.positions.push_back(is_guest(p) ? no_position : p);
    }
    auto const turned = rotary(lane);
    row.rotary.insert(row.rotary.end(), turned.begin(), turned.end());
    memory_.save_states(lane, row.slot_states, row.lane_states);
  }
  /// Takes over the i-th lane of a row that fits.
  void load(index_t lane, row_snapshot const& row, std::size_t i) {
    std::size_t const cell = i * static_cast<std::size_t>(slots());
    memory_.load(lane,
                 row.positions.data() + cell,
                 row.rotary.data() + cell,
                 row.slot_states.data() + cell * lane_memory<P>::bytes_per_slot_state,
                 row.lane_states.data() + i * lane_memory<P>::bytes_per_lane_state);
    auto const here = positions(lane);
    at(lane).budget = row.budgets[i];
    at(lane).occupied = static_cast<index_t>(
        std::count_if(here.begin(), here.end(), [](position_t p) { return p >= 0; }));
    refill_free(lane);
  }
  /// Fills an empty lane, ascending positions into the slots 0, 1, ...
  ///
  /// @throws std::length_error, with nothing changed, if they are more than there are slots
  void fill(index_t lane,
            std::span<position_t const> positions,
            std::span<position_t const> rotary,
            std::span<slot_state const> states) {
    assert(at(lane).occupied == 0);
    if (positions.size() > static_cast<std::size_t>(slots())) {
      refuse_prompt(positions.size(), slots());
    }
    lane_slots<P> const here = slots_of(lane);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      here.positions[i] = positions[i];
      here.rotary[i] = rotary[i];
      here.state(static_cast<index_t>(i)) = states[i];
    }
    at(lane).occupied = static_cast<index_t>(positions.size());
    refill_free(lane);
  }
  /// What `fill` says, for those who can tell before.
  [[noreturn]] static void refuse_prompt(std::size_t stay, index_t slots) {
    throw std::length_error("adore: begin_prompt: " + std::to_string(stay) +
                            " tokens of the prompt stay; a lane has " + std::to_string(slots) +
                            " slots");
  }
  /// new_slot_of[old slot], -1 for a free one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    auto const here = positions(lane);
    for (std::size_t slot = 0; slot < here.size(); ++slot) {
      if (here[slot] != no_position) require_slot(new_slot_of[slot]);
    }
    memory_.move(lane, new_slot_of);
    refill_free(lane);
  }

  // ---------------------------------------------------------------- tokens that come and go

  /// `count` tokens come, the first of which has position `next`.
  ///
  /// @throws std::length_error if there are too few free slots
  void place(index_t lane, index_t count, position_t next) {
    at(lane).new_count = count;
    if (placement_ == placement::by_store) {
      std::fill_n(fresh(lane), count, -1);
      return;
    }
    if (count > free_.count(lane)) refuse_room(lane, free_.count(lane), count);
    for (index_t j = 0; j < count; ++j) occupy(lane, j, free_.pop(lane), next + j);
  }
  /// A store that chooses for itself says where the j-th of them went.
  void report_placed(index_t lane, index_t j, index_t slot, position_t position) {
    require_slot(slot);
    assert(placement_ == placement::by_store);
    if (j < 0 || j >= at(lane).new_count || fresh(lane)[j] >= 0) {
      throw std::logic_error("adore: placed: new token " + std::to_string(j) + " of lane " +
                             std::to_string(lane) + " is none of the step's " +
                             std::to_string(at(lane).new_count) + ", or has its slot already");
    }
    occupy(lane, j, slot, position);
  }
  /// All but the first `accepted` go again.
  ///
  /// @return [accepted] their slots
  index_t const* settle(index_t lane, index_t accepted) {
    lane_record& record = at(lane);
    index_t const* const slots = fresh(lane);
    lane_slots<P> const here = slots_of(lane);
    for (index_t j = record.new_count; j-- > accepted;) {
      here.positions[slots[j]] = no_position;
      --record.occupied;
      give_back(lane, slots[j]);
    }
    record.new_count = 0;
    return slots;
  }
  /// A token has gone whose slot holds `no_position` already.
  void leave(index_t lane, index_t slot) {
    --at(lane).occupied;
    give_back(lane, slot);
  }

  // ---------------------------------------------------------------- guests

  /// @throws std::length_error if the lane has no free slot
  index_t invite(index_t lane, position_t position, slot_state const& state) {
    if (free_.count(lane) == 0) refuse_room(lane, 0, 1);
    index_t const slot = free_.pop(lane);
    memory_.put(lane, slot, position);
    lane_slots<P> const slots = slots_of(lane);
    slots.positions[slot] = guest_mark(position);
    slots.state(slot) = state;
    ++at(lane).guests;
    return slot;
  }
  void dismiss(index_t lane, index_t slot) {
    slots_of(lane).positions[slot] = no_position;
    --at(lane).guests;
    free_.push(lane, slot);
  }
  /// The guest becomes a token like any other.
  void admit(index_t lane, index_t slot) {
    position_t& here = slots_of(lane).positions[slot];
    here = guest_mark(here);
    --at(lane).guests;
    ++at(lane).occupied;
  }

 private:
  struct lane_record {
    index_t occupied = 0, budget = 0, new_count = 0, guests = 0;
  };

  lane_record& at(index_t lane) noexcept { return lanes_[static_cast<std::size_t>(lane)]; }
  lane_record const& at(index_t lane) const noexcept {
    return lanes_[static_cast<std::size_t>(lane)];
  }
  index_t* fresh(index_t lane) noexcept {
    return new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_;
  }
  index_t const* fresh(index_t lane) const noexcept {
    return new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_;
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
    fresh(lane)[j] = slot;
    ++at(lane).occupied;
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

  index_t max_new_, arrivals_;
  placement placement_;
  std::vector<lane_record> lanes_;
  lane_memory<P> memory_;
  free_slots free_;
  std::vector<index_t> new_slots_;  // [lane, max_new]
};

}  // namespace adore
