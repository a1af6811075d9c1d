// SPDX-License-Identifier: Apache-2.0
// Who sits in which slot: positions, policy state and budgets of every lane. Never holds K/V.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/cache_line_allocator.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/rank.hpp"
#include "adore/eviction/select.hpp"
#include "adore/eviction/victim_queue.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace adore {

/// A token that left a lane in the step that just ended.
struct released_token {
  index_t lane;
  index_t slot;
  position_t position;
};

/// A row's books at one moment: enough to go on exactly from there.
struct row_snapshot {
  scope reach = scope::model;
  position_t next = 0;
  std::uint64_t seed = 0;
  std::vector<index_t> budgets{};        // [lane]
  std::vector<position_t> positions{};   // [lane, slot]
  std::vector<position_t> rotary{};      // [lane, slot]
  std::vector<std::byte> slot_states{};  // [lane, slot] of the policy's slot_state
  std::vector<std::byte> lane_states{};  // [lane] of the policy's lane_state
};

/// Half-open ranges of layers and KV heads.
struct lane_extent {
  index_t first_layer, end_layer, first_head, end_head;
};

/// Who chooses the slot of a new token: the ledger, or a store that reports its own choice.
enum class placement : std::uint8_t { by_ledger, by_store };

/// The books of a cache: lanes of all rows, their tokens, and the decision at the end of a step.
///
/// A lane is numbered (row * layers + layer) * kv_heads + kv_head, with the coordinates that its
/// scope does not have left out. A step is `place` for each lane, then `commit` for each lane, then
/// `advance` for the row.
template <eviction_policy P>
class ledger {
 public:
  using slot_state = slot_state_of<P>;
  using lane_state = lane_state_of<P>;

  /// @param shape    rows, layers, KV heads and slots per lane; channels are not looked at
  /// @param max_new  new tokens that a step may bring
  ledger(P policy,
         kv_shape const& shape,
         scope reach,
         index_t max_new,
         placement placed = placement::by_ledger)
      : policy_(policy),
        shape_(shape),
        scope_(reach),
        max_new_(max_new),
        placement_(placed),
        stride_((shape.slots + cells_per_line - 1) / cells_per_line * cells_per_line) {
    lane_layers_ = reach == scope::model ? 1 : shape.layers;
    lane_heads_ = reach == scope::kv_head ? shape.kv_heads : 1;
    auto const lanes = static_cast<std::size_t>(shape.sequences * lanes_per_row());
    auto const cells = lanes * static_cast<std::size_t>(stride_);
    rows_.resize(static_cast<std::size_t>(shape.sequences));
    lanes_.resize(lanes);
    for (index_t row = 0; row < shape.sequences; ++row) {
      for (index_t layer = 0; layer < lane_layers_; ++layer) {
        for (index_t head = 0; head < lane_heads_; ++head) places_.push_back({row, layer, head});
      }
    }
    lane_states_.resize(std::is_empty_v<lane_state> ? 1 : lanes);
    positions_.assign(cells, no_position);
    rotary_.assign(cells, no_position);
    states_.resize(std::is_empty_v<slot_state> ? 1 : cells);
    free_.resize(cells);
    new_slots_.resize(lanes * static_cast<std::size_t>(max_new));
    if constexpr (queued) queue_ = {static_cast<index_t>(lanes), shape.slots};
  }

  // ---------------------------------------------------------------- where things are

  P const& policy() const noexcept { return policy_; }
  kv_shape const& shape() const noexcept { return shape_; }
  scope reach() const noexcept { return scope_; }
  index_t slots() const noexcept { return shape_.slots; }
  index_t max_new() const noexcept { return max_new_; }
  index_t lanes_per_row() const noexcept { return lane_layers_ * lane_heads_; }
  index_t lane_layers() const noexcept { return lane_layers_; }
  index_t lane_heads() const noexcept { return lane_heads_; }

  /// The lane that a KV head of a layer of a row belongs to.
  index_t lane(index_t row, index_t layer, index_t kv_head) const noexcept {
    index_t const l = scope_ == scope::model ? 0 : layer;
    index_t const h = scope_ == scope::kv_head ? kv_head : 0;
    return (row * lane_layers_ + l) * lane_heads_ + h;
  }
  index_t row_of(index_t lane) const noexcept { return at(places_, lane).row; }
  index_t layer_of(index_t lane) const noexcept { return at(places_, lane).layer; }
  index_t head_of(index_t lane) const noexcept { return at(places_, lane).kv_head; }

  /// The layers and KV heads that share a lane.
  lane_extent extent_of(index_t lane) const noexcept {
    index_t const layer = layer_of(lane);
    index_t const head = head_of(lane);
    return {layer,
            scope_ == scope::model ? shape_.layers : layer + 1,
            head,
            scope_ == scope::kv_head ? head + 1 : shape_.kv_heads};
  }

  // ---------------------------------------------------------------- what is there

  bool is_open(index_t row) const noexcept { return at(rows_, row).open; }
  /// Position of the next token of the row's sequence = tokens seen so far.
  position_t next_position(index_t row) const noexcept { return at(rows_, row).next; }
  index_t occupied(index_t lane) const noexcept { return at(lanes_, lane).occupied; }
  index_t budget(index_t lane) const noexcept { return at(lanes_, lane).budget; }

  /// [slot]; `no_position` where the slot is free.
  std::span<position_t const> positions(index_t lane) const noexcept {
    return {positions_.data() + offset(lane), static_cast<std::size_t>(shape_.slots)};
  }
  std::span<position_t const> rotary(index_t lane) const noexcept {
    return {rotary_.data() + offset(lane), static_cast<std::size_t>(shape_.slots)};
  }
  /// Positions of the tokens in the lane, ascending.
  std::vector<position_t> kept(index_t lane) const {
    std::vector<position_t> result;
    for (position_t const p : positions(lane)) {
      if (p != no_position) result.push_back(p);
    }
    std::sort(result.begin(), result.end());
    return result;
  }
  /// Slots of the step's new tokens, in the order of their positions.
  std::span<index_t const> new_slots(index_t lane) const noexcept {
    return {new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_,
            static_cast<std::size_t>(at(lanes_, lane).new_count)};
  }
  /// What left all lanes since the last `forget_released`.
  std::span<released_token const> released() const noexcept { return released_; }
  void forget_released() noexcept { released_.clear(); }

  lane_slots<P> slots_of(index_t lane) noexcept {
    auto const begin = offset(lane);
    return {shape_.slots,
            positions_.data() + begin,
            rotary_.data() + begin,
            states_.data() + (std::is_empty_v<slot_state> ? 0 : begin),
            &lane_states_[std::is_empty_v<lane_state> ? 0 : static_cast<std::size_t>(lane)]};
  }
  lane_view view_of(index_t lane, position_t newest) const noexcept {
    lane_record const& record = at(lanes_, lane);
    return {newest,
            record.occupied,
            record.budget,
            layer_of(lane),
            head_of(lane),
            at(rows_, row_of(lane)).seed};
  }

  // ---------------------------------------------------------------- life of a sequence

  /// @throws std::logic_error unless the row holds a sequence
  void require_open(index_t row, char const* what) const {
    check_row(row);
    if (!is_open(row)) {
      throw std::logic_error(std::string("adore: ") + what + ": row " + std::to_string(row) +
                             " holds no sequence; open it first");
    }
  }

  /// @throws std::logic_error if the row is occupied
  void open(index_t row, std::uint64_t seed) {
    check_row(row);
    if (is_open(row))
      throw std::logic_error("adore: open: row " + std::to_string(row) +
                             " holds a sequence; close it first");
    at(rows_, row) = {0, seed, true};
    for_lanes(row, [&](index_t lane) {
      lane_record& record = at(lanes_, lane);
      record = {};
      record.budget = initial_budget(layer_of(lane), head_of(lane));
      std::fill_n(positions_.begin() + offset(lane), shape_.slots, no_position);
      if (!std::is_empty_v<lane_state>) lane_states_[static_cast<std::size_t>(lane)] = {};
      if constexpr (queued) queue_.clear(lane);
      refill_free(lane);
    });
  }
  void close(index_t row) {
    require_open(row, "close");
    at(rows_, row).open = false;
    for_lanes(row, [&](index_t lane) {
      at(lanes_, lane) = {};
      std::fill_n(positions_.begin() + offset(lane), shape_.slots, no_position);
    });
  }
  /// `to` becomes a copy of `from`: same tokens in the same slots, same state, same seed.
  void fork(index_t from, index_t to) {
    require_open(from, "fork");
    check_row(to);
    if (is_open(to))
      throw std::logic_error("adore: fork: row " + std::to_string(to) +
                             " holds a sequence; close it first");
    at(rows_, to) = at(rows_, from);
    for_lanes(from, [&](index_t lane) {
      index_t const twin = lane + (to - from) * lanes_per_row();
      at(lanes_, twin) = at(lanes_, lane);
      copy_cells(positions_, lane, twin);
      copy_cells(rotary_, lane, twin);
      copy_cells(free_, lane, twin);
      if constexpr (!std::is_empty_v<slot_state>) copy_cells(states_, lane, twin);
      if constexpr (!std::is_empty_v<lane_state>) {
        lane_states_[static_cast<std::size_t>(twin)] = lane_states_[static_cast<std::size_t>(lane)];
      }
      if constexpr (queued) queue_.copy(lane, twin);
    });
  }

  row_snapshot snapshot(index_t row) const {
    require_open(row, "snapshot");
    row_snapshot saved{.reach = scope_, .next = at(rows_, row).next, .seed = at(rows_, row).seed};
    index_t const first = row * lanes_per_row();
    for (index_t lane = first; lane < first + lanes_per_row(); ++lane) {
      saved.budgets.push_back(at(lanes_, lane).budget);
    }
    for (index_t lane = first; lane < first + lanes_per_row(); ++lane) {
      auto const here = positions(lane);
      auto const turned = rotary(lane);
      saved.positions.insert(saved.positions.end(), here.begin(), here.end());
      saved.rotary.insert(saved.rotary.end(), turned.begin(), turned.end());
      if constexpr (!std::is_empty_v<slot_state>) {
        auto const* const bytes = reinterpret_cast<std::byte const*>(states_.data() + offset(lane));
        saved.slot_states.insert(saved.slot_states.end(),
                                 bytes,
                                 bytes + shape_.slots * std::ptrdiff_t{sizeof(slot_state)});
      }
    }
    if constexpr (!std::is_empty_v<lane_state>) {
      auto const* const bytes = reinterpret_cast<std::byte const*>(lane_states_.data() + first);
      saved.lane_states.assign(bytes, bytes + lanes_per_row() * std::ptrdiff_t{sizeof(lane_state)});
    }
    return saved;
  }
  /// Opens `row` as it was saved, in this or another cache of the same set-up.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit, or
  ///         contradicts itself
  void restore(index_t row, row_snapshot const& saved) {
    check_snapshot(saved);
    open(row, saved.seed);
    at(rows_, row).next = saved.next;
    index_t const first = row * lanes_per_row();
    if constexpr (!std::is_empty_v<lane_state>) {
      std::memcpy(lane_states_.data() + first, saved.lane_states.data(), saved.lane_states.size());
    }
    for_lanes(row, [&](index_t lane) {
      auto const cells = static_cast<std::ptrdiff_t>(lane - first) * shape_.slots;
      std::copy_n(saved.positions.begin() + cells, shape_.slots, positions_.begin() + offset(lane));
      std::copy_n(saved.rotary.begin() + cells, shape_.slots, rotary_.begin() + offset(lane));
      if constexpr (!std::is_empty_v<slot_state>) {
        std::memcpy(states_.data() + offset(lane),
                    saved.slot_states.data() + cells * std::ptrdiff_t{sizeof(slot_state)},
                    static_cast<std::size_t>(shape_.slots) * sizeof(slot_state));
      }
      auto const here = positions(lane);
      at(lanes_, lane).budget = saved.budgets[static_cast<std::size_t>(lane - first)];
      at(lanes_, lane).occupied =
          shape_.slots - static_cast<index_t>(std::count(here.begin(), here.end(), no_position));
      refill_free(lane);
      index_queue(lane);
    });
  }

  // ---------------------------------------------------------------- one step of one lane

  /// Gives slots to `count` new tokens, whose positions follow the row's last one.
  ///
  /// @throws std::length_error if the lane has too few free slots, or the sequence is at its end
  void place(index_t lane, index_t count) {
    lane_record& record = at(lanes_, lane);
    position_t const next = at(rows_, row_of(lane)).next;
    if (count > last_position - next) refuse_end();
    record.new_count = count;
    if (placement_ == placement::by_store) {
      std::fill_n(new_slots_.begin() + static_cast<std::ptrdiff_t>(lane) * max_new_, count, -1);
      return;
    }
    if (count > record.free_count) refuse_room(lane, record.free_count, count);
    for (index_t j = 0; j < count; ++j) {
      index_t const slot = free_[static_cast<std::size_t>(offset(lane) + --record.free_count)];
      occupy(lane, j, slot, next + j);
    }
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
    occupy(lane, j, slot, at(rows_, row_of(lane)).next + j);
  }
  /// A store that moved its tokens says where they are now: new_slot_of[old slot], -1 for a free
  /// one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    auto const cells = offset(lane);
    std::vector<position_t> const positions(positions_.begin() + cells,
                                            positions_.begin() + cells + shape_.slots);
    std::vector<position_t> const rotary(rotary_.begin() + cells,
                                         rotary_.begin() + cells + shape_.slots);
    std::vector<slot_state> states;
    if constexpr (!std::is_empty_v<slot_state>) {
      states.assign(states_.begin() + cells, states_.begin() + cells + shape_.slots);
    }
    std::fill_n(positions_.begin() + cells, shape_.slots, no_position);
    for (index_t s = 0; s < shape_.slots; ++s) {
      auto const old = static_cast<std::size_t>(s);
      if (positions[old] == no_position) continue;
      require_slot(new_slot_of[old]);
      auto const now = static_cast<std::size_t>(cells + new_slot_of[old]);
      positions_[now] = positions[old];
      rotary_[now] = rotary[old];
      if constexpr (!std::is_empty_v<slot_state>) states_[now] = states[old];
    }
    refill_free(lane);
    index_queue(lane);
  }

  /// Ends a lane's step: keeps the first `accepted` new tokens, lets the policy observe, selects.
  ///
  /// @param weights  [slot], see `observe_and_rank`; nullptr if the policy does not observe
  void commit(index_t lane, index_t accepted, float const* weights) {
    lane_record& record = at(lanes_, lane);
    position_t const next = at(rows_, row_of(lane)).next;
    index_t const* const fresh = new_slots_.data() + static_cast<std::ptrdiff_t>(lane) * max_new_;
    for (index_t j = record.new_count; j-- > accepted;) {
      positions_[static_cast<std::size_t>(offset(lane) + fresh[j])] = no_position;
      --record.occupied;
      give_back(lane, record, fresh[j]);
    }
    record.new_count = 0;
    if (accepted == 0) return;
    lane_view view = view_of(lane, next + accepted - 1);
    lane_slots<P> const slots = slots_of(lane);
    if constexpr (queued) {
      for (index_t j = 0; j < accepted; ++j) enqueue(lane, fresh[j], view);
      select_queued(lane, slots, view);
    } else {
      candidate_range const range = candidates_of(policy_, view);
      if constexpr (observes_attention<P>) {
        select_by_rank(
            lane, slots, view, observe_and_rank(policy_, slots, view, range, weights, accepted));
      } else {
        select_by_rank(lane, slots, view, rank(policy_, slots, view, range));
      }
    }
  }
  /// The row's step is over: its sequence is `accepted` tokens longer.
  void advance(index_t row, index_t accepted) { at(rows_, row).next += accepted; }

  // ---------------------------------------------------------------- decisions outside a step

  /// Changes a lane's budget; a smaller one releases by the policy's rule at once, a larger one
  /// does not bring anything back.
  void set_budget(index_t lane, index_t budget) {
    if (budget < 0) {
      throw std::invalid_argument("adore: budget = " + std::to_string(budget) +
                                  ": must not be negative");
    }
    if (placement_ == placement::by_ledger && budget != unbounded &&
        budget > shape_.slots - max_new_) {
      throw std::invalid_argument("adore: budget = " + std::to_string(budget) + ": the store has " +
                                  std::to_string(shape_.slots) +
                                  " slots per lane and a step may bring " +
                                  std::to_string(max_new_) + " tokens");
    }
    at(lanes_, lane).budget = budget;
    shrink(lane, budget);
  }
  /// Releases by the policy's rule until at most `room` tokens are left, whatever the budget.
  void shrink(index_t lane, index_t room) {
    position_t const newest = at(rows_, row_of(lane)).next - 1;
    if (newest < 0) return;
    if constexpr (queued) index_queue(lane);  // protection may depend on the budget
    lane_view view = view_of(lane, newest);
    view.budget = room;
    lane_slots<P> const slots = slots_of(lane);
    if constexpr (queued) {
      select_queued(lane, slots, view);
    } else {
      select_by_rank(lane, slots, view, rank(policy_, slots, view, candidates_of(policy_, view)));
    }
  }

  /// Fills an empty lane with what a prompt's selection kept.
  ///
  /// @param kept  ascending positions; they go to the slots 0, 1, ...
  void adopt(index_t lane,
             std::span<position_t const> kept,
             std::span<position_t const> rotary,
             std::span<slot_state const> states) {
    lane_record& record = at(lanes_, lane);
    assert(record.occupied == 0);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      auto const cell = static_cast<std::size_t>(offset(lane)) + i;
      positions_[cell] = kept[i];
      rotary_[cell] = rotary[i];
      if constexpr (!std::is_empty_v<slot_state>) states_[cell] = states[i];
    }
    record.occupied = static_cast<index_t>(kept.size());
    refill_free(lane);
  }
  /// Sets a budget without looking at what is in the lane.
  void assign_budget(index_t lane, index_t budget) {
    if (budget > shape_.slots - max_new_) {
      throw std::length_error("adore: a lane's share of the budget is " + std::to_string(budget) +
                              " tokens; the store has " + std::to_string(shape_.slots) +
                              " slots per lane");
    }
    at(lanes_, lane).budget = budget;
  }
  /// After `adopt` and `advance`: what the policy keeps beside the slots.
  void finish_prompt(index_t lane) {
    index_queue(lane);
    if constexpr (marks_tokens<P>) {
      choose(slots_of(lane), view_of(lane, at(rows_, row_of(lane)).next - 1));
    }
  }
  void log_release(index_t lane, index_t slot, position_t position) {
    released_.push_back({lane, slot, position});
  }
  /// Orders the candidates anew from what the lane holds (after `adopt`, `move`, a load).
  void index_queue(index_t lane) {
    if constexpr (queued) {
      queue_.clear(lane);
      std::vector<index_t> order;
      lane_slots<P> const slots = slots_of(lane);
      for (index_t s = 0; s < shape_.slots; ++s) {
        if (slots.positions[s] != no_position) order.push_back(s);
      }
      std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
        return slots.positions[a] < slots.positions[b];
      });
      lane_view const view = view_of(lane, at(rows_, row_of(lane)).next - 1);
      for (index_t const s : order) enqueue(lane, s, view);
    }
  }

 private:
  struct row_record {
    position_t next = 0;
    std::uint64_t seed = 0;
    bool open = false;
  };
  struct lane_record {
    index_t occupied = 0, budget = 0, free_count = 0, new_count = 0;
  };
  struct lane_place {
    index_t row, layer, kv_head;
  };
  /// Whether victims come from a queue; other lanes are looked at slot by slot.
  static constexpr bool queued = ranks_once<P> && !releases_blocks<P> && !observes_attention<P>;
  template <class T>
  using cells_of = std::vector<T, cache_line_allocator<T>>;
  static constexpr index_t cells_per_line = cache_line_bytes / sizeof(position_t);

  template <class T>
  static T& at(std::vector<T>& data, index_t i) noexcept {
    return data[static_cast<std::size_t>(i)];
  }
  template <class T>
  static T const& at(std::vector<T> const& data, index_t i) noexcept {
    return data[static_cast<std::size_t>(i)];
  }
  std::ptrdiff_t offset(index_t lane) const noexcept {
    return static_cast<std::ptrdiff_t>(lane) * stride_;
  }
  template <class Cells>
  void copy_cells(Cells& data, index_t from, index_t to) {
    std::copy_n(data.begin() + offset(from), shape_.slots, data.begin() + offset(to));
  }
  template <class Action>
  void for_lanes(index_t row, Action&& action) {
    index_t const first = row * lanes_per_row();
    for (index_t lane = first; lane < first + lanes_per_row(); ++lane) action(lane);
  }
  void check_row(index_t row) const {
    if (row < 0 || row >= shape_.sequences) {
      throw std::invalid_argument("adore: row = " + std::to_string(row) +
                                  ": the cache has rows 0 to " +
                                  std::to_string(shape_.sequences - 1));
    }
  }
  void check_snapshot(row_snapshot const& saved) const {
    auto const lanes = static_cast<std::size_t>(lanes_per_row());
    auto const cells = lanes * static_cast<std::size_t>(shape_.slots);
    bool const fits =
        saved.reach == scope_ && saved.budgets.size() == lanes && saved.positions.size() == cells &&
        saved.rotary.size() == cells &&
        saved.slot_states.size() ==
            (std::is_empty_v<slot_state> ? 0 : cells * sizeof(slot_state)) &&
        saved.lane_states.size() == (std::is_empty_v<lane_state> ? 0 : lanes * sizeof(lane_state));
    if (!fits) {
      throw std::invalid_argument(
          "adore: restore: the snapshot is of a cache with another scope, "
          "number of lanes or slots, or policy");
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      auto const begin = saved.positions.begin() + static_cast<std::ptrdiff_t>(lane) * shape_.slots;
      std::vector<position_t> present(begin, begin + shape_.slots);
      std::erase(present, no_position);
      std::sort(present.begin(), present.end());
      bool const sound =
          saved.next >= 0 && saved.budgets[lane] >= 0 &&
          (present.empty() || (present.front() >= 0 && present.back() < saved.next)) &&
          std::adjacent_find(present.begin(), present.end()) == present.end();
      if (!sound) {
        throw std::invalid_argument("adore: restore: lane " + std::to_string(lane) +
                                    " of the snapshot holds a position twice, or one that its "
                                    "sequence has not reached");
      }
    }
  }
  void require_slot(index_t slot) const {
    if (slot < 0 || slot >= shape_.slots) {
      throw std::invalid_argument("adore: slot = " + std::to_string(slot) +
                                  ": the lane has slots 0 to " + std::to_string(shape_.slots - 1));
    }
  }
  // The sentences of `place` are made elsewhere: their strings would cost it a large stack frame.
  [[noreturn]] static void refuse_end() {
    throw std::length_error("adore: a sequence ends at position 2^31 - 2");
  }
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
      return policy_.lane_budget(shape_, layer, kv_head);
    } else {
      return policy_.budget();
    }
  }
  /// Free slots as a stack whose top is the lowest slot.
  void refill_free(index_t lane) {
    lane_record& record = at(lanes_, lane);
    record.free_count = 0;
    for (index_t s = shape_.slots; s-- > 0;) {
      auto const cell = static_cast<std::size_t>(offset(lane) + s);
      if (positions_[cell] == no_position) give_back(lane, record, s);
    }
  }
  void give_back(index_t lane, lane_record& record, index_t slot) {
    if (placement_ == placement::by_store) return;  // it knows which of its slots are free
    free_[static_cast<std::size_t>(offset(lane) + record.free_count++)] = slot;
  }
  void occupy(index_t lane, index_t j, index_t slot, position_t position) {
    auto const cell = static_cast<std::size_t>(offset(lane) + slot);
    if (positions_[cell] != no_position) refuse_slot(lane, slot, positions_[cell]);
    positions_[cell] = position;
    rotary_[cell] = position;
    if constexpr (!std::is_empty_v<slot_state>) states_[cell] = {};
    new_slots_[static_cast<std::size_t>(lane * max_new_ + j)] = slot;
    ++at(lanes_, lane).occupied;
  }
  void enqueue(index_t lane, index_t slot, lane_view const& view) {
    if constexpr (queued) {
      if (positions_[static_cast<std::size_t>(offset(lane) + slot)] >=
          candidates_of(policy_, view).first) {
        queue_.arrive(lane, slot);
      }
    }
  }
  void select_queued(index_t lane, lane_slots<P> const& slots, lane_view const& view) {
    lane_record& record = at(lanes_, lane);
    auto const give_up = [&](index_t victim) {
      if (victim < 0) victim = detail::protected_victim(slots, last_position);
      release(lane, record, victim);
    };
    position_t const last = candidates_of(policy_, view).last;
    queue_.select(policy_, lane, slots, view, last, record.occupied - view.budget, give_up);
  }
  void release(index_t lane, lane_record& record, index_t slot) {
    position_t& position = positions_[static_cast<std::size_t>(offset(lane) + slot)];
    forget(lane, record, {slot, position});
    position = no_position;
  }
  /// Books a token out whose slot has been, or is being, freed.
  void forget(index_t lane, lane_record& record, victim const& gone) {
    log_release(lane, gone.slot, gone.position);
    --record.occupied;
    give_back(lane, record, gone.slot);
  }
  void select_by_rank(index_t lane,
                      lane_slots<P> const& slots,
                      lane_view view,
                      lowest_slot lowest) {
    bool const may_release = view.occupied > view.budget || lowest.rank == ordered_keep_never;
    bool const just_one =
        view.occupied - 1 == view.budget && lowest.slot >= 0 && lowest.rank > ordered_keep_never;
    if (!relents<P> && !releases_blocks<P> && just_one) {  // every step of a full lane
      release(lane, at(lanes_, lane), lowest.slot);
      --view.occupied;
    } else if (may_release) {
      victims_.clear();
      select(policy_, slots, view, lowest, victims_);
      for (victim const& gone : victims_) forget(lane, at(lanes_, lane), gone);
    }
    if constexpr (marks_tokens<P>) choose(slots, view);
  }
  void choose(lane_slots<P> const& slots, lane_view const& view) requires marks_tokens<P> {
    index_t const count = policy_.marks(view);
    if (count == unbounded) return;
    position_t const last = policy_.last_markable(view);
    std::vector<std::pair<std::uint64_t, index_t>> keys;
    for (index_t s = 0; s < shape_.slots; ++s) {
      position_t const p = slots.positions[s];
      if (p == no_position) continue;
      if (p > last) {
        policy_.unmark(slots.state(s));
      } else {
        float const priority =
            priority_of(policy_, slots.view(s), view, slots.state(s), *slots.lane_state);
        keys.emplace_back(order_key(priority, p, releases_newest_of_equals<P>), s);
      }
    }
    std::sort(keys.rbegin(), keys.rend());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      policy_.mark(slots.state(keys[i].second), i < static_cast<std::size_t>(count));
    }
  }

  P policy_;
  kv_shape shape_;
  scope scope_;
  index_t max_new_;
  placement placement_;
  index_t stride_;  // cells from lane to lane: each begins at a cache line
  index_t lane_layers_ = 1, lane_heads_ = 1;
  std::vector<row_record> rows_;
  std::vector<lane_record> lanes_;
  std::vector<lane_place> places_;       // [lane]: three divisions would cost more than a ring
  std::vector<lane_state> lane_states_;  // [lane]
  cells_of<position_t> positions_;       // [lane, slot]
  cells_of<position_t> rotary_;          // [lane, slot]
  cells_of<slot_state> states_;          // [lane, slot]
  std::vector<index_t> free_;            // [lane, slot], the first free_count are slots
  std::vector<index_t> new_slots_;       // [lane, max_new]
  std::vector<released_token> released_;
  std::vector<victim> victims_;
  struct no_queue {};
  [[no_unique_address]] typename decltype([] {
    if constexpr (queued) {
      return std::type_identity<victim_queue<P>>{};
    } else {
      return std::type_identity<no_queue>{};
    }
  }())::type queue_;
};

}  // namespace adore
