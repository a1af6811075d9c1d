// SPDX-License-Identifier: Apache-2.0
// The books of a cache: its sequences, their lanes, and the decisions about them. Never holds K/V.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_budget.hpp"
#include "adore/eviction/lane_layout.hpp"
#include "adore/eviction/lane_memory.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/lane_table.hpp"
#include "adore/eviction/mark.hpp"
#include "adore/eviction/release_log.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/sequence_rows.hpp"
#include "adore/eviction/victim_search.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace adore {

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
        rows_(shape.sequences),
        table_(layout_.lanes(), shape.slots, max_new, guests, placed),
        search_(layout_.lanes(), shape.slots) {}

  // ---------------------------------------------------------------- where things are

  P const& policy() const noexcept { return policy_; }
  kv_shape const& shape() const noexcept { return layout_.shape(); }
  scope reach() const noexcept { return layout_.reach(); }
  index_t slots() const noexcept { return shape().slots; }
  index_t max_new() const noexcept { return table_.max_new(); }
  placement placed() const noexcept { return table_.placed(); }
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
  index_t occupied(index_t lane) const noexcept { return table_.occupied(lane); }
  index_t budget(index_t lane) const noexcept { return table_.budget(lane); }
  /// Slots that hold neither a token nor a guest.
  index_t room(index_t lane) const noexcept { return table_.room(lane); }

  /// [slot]; `no_position` where the slot is free, `guest_mark(position)` where a guest is.
  std::span<position_t const> positions(index_t lane) const noexcept {
    return table_.positions(lane);
  }
  std::span<position_t const> rotary(index_t lane) const noexcept { return table_.rotary(lane); }
  /// Positions of the tokens in the lane, ascending.
  std::vector<position_t> kept(index_t lane) const { return table_.kept(lane); }
  /// Slots of the step's new tokens, in the order of their positions.
  std::span<index_t const> new_slots(index_t lane) const noexcept { return table_.new_slots(lane); }
  /// The slots that `place` and then `invite` give next, in no order; fewer if the lane has fewer.
  std::span<index_t const> next_slots(index_t lane, index_t count) const noexcept {
    return table_.free().next(lane, count);
  }
  /// Free slots for which `preferred(slot)` holds are given first, the lowest before the others.
  template <class Preferred>
  void prefer_slots(index_t lane, Preferred&& preferred) {
    table_.free().prefer(lane, preferred);
  }
  /// What left all lanes since `forget_released`.
  std::span<released_token const> released() const noexcept { return released_.tokens(); }
  void forget_released() noexcept { released_.clear(); }

  lane_slots<P> slots_of(index_t lane) noexcept { return table_.slots_of(lane); }
  lane_view view_of(index_t lane, position_t newest) const noexcept {
    return {newest,
            occupied(lane),
            budget(lane),
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
      table_.begin(lane, first_budget(policy_, shape(), layer_of(lane), head_of(lane)));
      search_.clear(lane);
    });
  }
  void close(index_t row) {
    require_open(row, "close");
    rows_.close(row);
    for_lanes(row, [&](index_t lane) { table_.end(lane); });
  }
  /// `to` becomes a copy of `from`: same tokens in the same slots, same state, same seed.
  void fork(index_t from, index_t to) {
    require_open(from, "fork");
    rows_.require_free(to, "fork");
    rows_.copy(from, to);
    for_lanes(from, [&](index_t lane) {
      index_t const twin = lane + (to - from) * lanes_per_row();
      table_.copy(lane, twin);
      search_.copy(lane, twin);
    });
  }

  row_snapshot snapshot(index_t row) const {
    require_open(row, "snapshot");
    row_snapshot saved{.reach = reach(), .next = rows_.next(row), .seed = rows_.seed(row)};
    for_lanes(row, [&](index_t lane) { table_.save(lane, saved); });
    return saved;
  }
  /// Opens `row` as it was saved, in this or another cache of the same set-up; `saved.past` is for
  /// who brings tokens back.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit, or
  ///         contradicts itself
  void restore(index_t row, row_snapshot const& saved) {
    require_restorable(row, saved);
    open(row, saved.seed);
    rows_.advance(row, saved.next);
    for_lanes(row, [&](index_t lane) {
      table_.load(lane, saved, static_cast<std::size_t>(lane - row * lanes_per_row()));
      index_queue(lane);
    });
  }
  /// What `restore` says, for those who have more to restore.
  void require_restorable(index_t row, row_snapshot const& saved) const {
    rows_.require_free(row, "open");
    require_sound(saved,
                  {reach(),
                   static_cast<std::size_t>(lanes_per_row()),
                   static_cast<std::size_t>(slots()),
                   lane_memory<P>::bytes_per_slot_state,
                   lane_memory<P>::bytes_per_lane_state,
                   true});
  }

  // ---------------------------------------------------------------- guests

  /// Gives a slot to a released token that is back for a while: attended, but no candidate for
  /// release, and not counted against the budget.
  ///
  /// @param state  what the policy knows of it
  /// @throws std::length_error if the lane has no free slot
  index_t invite(index_t lane, position_t position, slot_state const& state) {
    return table_.invite(lane, position, state);
  }
  /// The guest leaves.
  void dismiss(index_t lane, index_t slot) { table_.dismiss(lane, slot); }
  /// The guest becomes a token of the lane like any other, before the step's `commit`.
  void admit(index_t lane, index_t slot) { table_.admit(lane, slot); }

  // ---------------------------------------------------------------- one step of one lane

  /// Gives slots to `count` new tokens, whose positions follow the row's last one.
  ///
  /// @throws std::length_error if the lane has too few free slots, or the sequence is at its end
  void place(index_t lane, index_t count) {
    require_before_end(row_of(lane), count);
    table_.place(lane, count, rows_.next(row_of(lane)));
  }
  /// A store that chooses for itself says where the step's j-th new token of this lane went.
  void report_placed(index_t lane, index_t j, index_t slot) {
    table_.report_placed(lane, j, slot, rows_.next(row_of(lane)) + j);
  }
  /// A store that moved its tokens says where they are: new_slot_of[old slot], -1 for a free one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    table_.move(lane, new_slot_of);
    index_queue(lane);
  }

  /// Ends a lane's step: keeps the first `accepted` new tokens, lets the policy observe, selects.
  ///
  /// @param weights  [slot], see `observe_and_rank`; nullptr: the policy does not observe this step
  void commit(index_t lane, index_t accepted, float const* weights) {
    index_t const* const fresh = table_.settle(lane, accepted);
    if (accepted == 0) return;
    lane_slots<P> const slots = slots_of(lane);
    lane_view const view = view_of(lane, rows_.next(row_of(lane)) + accepted - 1);
    auto const book_out = [&](victim const& gone) { forget(lane, gone); };
    if constexpr (observes_attention<P>) {
      if (weights != nullptr) {
        search_.observe_and_select(policy_, slots, view, weights, accepted, book_out);
        return;
      }
    }
    for (index_t j = 0; j < accepted; ++j) search_.arrive(policy_, lane, slots, fresh[j], view);
    search_.select(policy_, lane, slots, view, book_out);
  }
  /// The row's step is over: its sequence is `accepted` tokens longer.
  void advance(index_t row, index_t accepted) { rows_.advance(row, accepted); }

  // ---------------------------------------------------------------- decisions outside a step

  /// Changes a lane's budget; a smaller one releases by the policy's rule at once, a larger one
  /// does not bring anything back.
  void set_budget(index_t lane, index_t budget) {
    require_budget(budget, slots(), placed() == placement::by_ledger ? table_.arrivals() : -1);
    table_.assign_budget(lane, budget);
    shrink(lane, budget);
  }
  /// Releases by the policy's rule until at most `room` tokens are left, whatever the budget.
  void shrink(index_t lane, index_t room) {
    lane_view view = last_view_of(lane);
    if (view.newest < 0) return;
    lane_slots<P> const slots = slots_of(lane);
    search_.rebuild(policy_, lane, slots, view);
    view.budget = room;
    search_.select(policy_, lane, slots, view, [&](victim const& gone) { forget(lane, gone); });
  }

  /// Fills an empty lane with what a prompt's selection kept.
  ///
  /// @param kept  ascending positions; they go to the slots 0, 1, ...
  /// @throws std::length_error, with nothing changed, if they are more than the lane has slots
  void adopt(index_t lane,
             std::span<position_t const> kept,
             std::span<position_t const> rotary,
             std::span<slot_state const> states) {
    table_.fill(lane, kept, rotary, states);
  }
  /// Sets a budget without looking at what is in the lane.
  void assign_budget(index_t lane, index_t budget) {
    require_share(budget, slots(), table_.arrivals());
    table_.assign_budget(lane, budget);
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
  /// The lane as the newest token of its sequence has left it.
  lane_view last_view_of(index_t lane) const noexcept {
    return view_of(lane, rows_.next(row_of(lane)) - 1);
  }
  /// Books a token out whose slot has been freed.
  void forget(index_t lane, victim const& gone) {
    log_release(lane, gone.slot, gone.position);
    table_.leave(lane, gone.slot);
  }

  P policy_;
  lane_layout layout_;
  sequence_rows rows_;
  lane_table<P> table_;
  release_log released_;
  victim_search<P> search_;
};

}  // namespace adore
