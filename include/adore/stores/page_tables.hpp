// SPDX-License-Identifier: Apache-2.0
// The books of a paged store: which pages each row holds, and which slots of its lanes hold a
// token. Knows no K/V: whoever has the memory makes the copies that are asked for, on the host or a
// device.
#pragma once

#include "adore/stores/page_pool.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adore {

/// What the first page holds, in all layers and heads, K and V, must be put into the second one.
struct page_copy {
  index_t from, to;
};

/// Slot s of a row lies in its page number s / page_size. Lanes are named as in
/// `released_positions`, by the scope of the one cache that the store serves; it is known, and the
/// books get their size, when the first slots are reserved.
class page_tables {
 public:
  /// @param shape  slots must be a multiple of page_size
  page_tables(kv_shape const& shape, index_t page_size, index_t pages)
      : shape_(shape),
        page_size_(page_size),
        pool_(pages),
        table_(size(shape.sequences) * size(row_pages()), no_page),
        tokens_(table_.size(), 0),
        wanted_(size(row_pages()), 0) {}

  page_pool const& pool() const noexcept { return pool_; }
  /// [row, page of the row]: a page, or `no_page`.
  index_t const* data() const noexcept { return table_.data(); }
  index_t page_size() const noexcept { return page_size_; }
  index_t rows() const noexcept { return shape_.sequences; }
  /// Pages of a row of which all slots are in use.
  index_t row_pages() const noexcept { return shape_.slots / page_size_; }
  /// The number-th page of a row, or `no_page`.
  index_t page(index_t row, index_t number) const noexcept { return table_[entry(row, number)]; }
  /// Does a lane hold a token in this slot?
  bool holds(index_t row, index_t layer, index_t kv_head, index_t slot) const noexcept {
    return !held_.empty() && held_[first_cell(row, layer, kv_head) + size(slot)] != 0;
  }
  /// Slots in use in the number-th page of a row, holes before the last token included.
  index_t slots_in_use(index_t row, index_t number) const noexcept {
    index_t in_use = 0;
    for_lanes([&](index_t layer, index_t kv_head) {
      for (index_t i = page_size_; i > in_use; --i) {
        if (holds(row, layer, kv_head, number * page_size_ + i - 1)) in_use = i;
      }
    });
    return in_use;
  }
  std::size_t allocated_bytes() const noexcept {
    return sizeof(index_t) * (table_.size() + tokens_.size()) + held_.size();
  }

  /// Does the slot lie in a page that only this row holds?
  bool owns(index_t row, index_t slot) const noexcept { return owns_page(row, slot / page_size_); }

  /// See `paging_store`.
  ///
  /// @return copies to make before the slots are written, valid until the next call
  /// @throws std::length_error, with nothing changed, if there are too few free pages
  /// @throws std::logic_error if lanes of another scope hold tokens
  std::span<page_copy const> reserve(index_t row,
                                     index_t layer,
                                     index_t kv_head,
                                     std::span<index_t const> slots) {
    require_pages(row, count_wanted(row, slots));
    copies_.clear();
    serve(layer < 0 ? scope::model : kv_head < 0 ? scope::layer : scope::kv_head);
    std::uint8_t* const lane = held_.data() + first_cell(row, layer, kv_head);
    for (index_t const slot : slots) {
      own(row, slot / page_size_);
      if (lane[slot] != 0) continue;
      lane[slot] = 1;
      ++tokens_[entry(row, slot / page_size_)];
    }
    return copies_;
  }
  /// Slots that hold nothing are passed over.
  ///
  /// @return slots in the pages that this made free
  index_t release(index_t row, index_t layer, index_t kv_head, std::span<index_t const> slots) {
    index_t freed = 0;
    if (held_.empty()) return freed;
    std::uint8_t* const lane = held_.data() + first_cell(row, layer, kv_head);
    for (index_t const slot : slots) {
      if (lane[slot] == 0) continue;
      lane[slot] = 0;
      std::size_t const at = entry(row, slot / page_size_);
      if (--tokens_[at] > 0) continue;
      if (pool_.drop(table_[at])) freed += page_size_;
      table_[at] = no_page;
    }
    return freed;
  }
  /// `to` holds all that `from` holds.
  ///
  /// @throws std::logic_error if `to` holds pages
  void fork(index_t from, index_t to) {
    for (index_t number = 0; number < row_pages(); ++number) {
      if (page(to, number) == no_page) continue;
      throw std::logic_error("adore: paged store: fork: row " + std::to_string(to) +
                             " holds pages; release its tokens first");
    }
    for (index_t number = 0; number < row_pages(); ++number) {
      index_t const shared = page(from, number);
      if (shared != no_page) pool_.share(shared);
      table_[entry(to, number)] = shared;
      tokens_[entry(to, number)] = tokens_[entry(from, number)];
    }
    std::size_t const cells = held_.size() / size(shape_.sequences);
    std::copy_n(held_.data() + size(from) * cells, cells, held_.data() + size(to) * cells);
  }

  /// Where the tokens of a row's lanes can go: in ascending order to the lowest slots of the pages
  /// that no other row holds. To leave or to fill a shared page would free nothing. Changes
  /// nothing.
  std::vector<moved_lane> compaction(index_t row) const {
    std::vector<moved_lane> lanes;
    if (held_.empty()) return lanes;
    for_lanes([&](index_t layer, index_t kv_head) {
      moved_lane lane{row, layer, kv_head, std::vector<index_t>(size(shape_.slots), -1)};
      index_t to = -1;
      for (index_t slot = 0; slot < shape_.slots; ++slot) {
        if (!holds(row, layer, kv_head, slot)) continue;
        bool const stays = !owns(row, slot);
        while (!stays && !owns(row, ++to)) {
        }
        lane.new_slot_of[size(slot)] = stays ? slot : to;
      }
      lanes.push_back(std::move(lane));
    });
    return lanes;
  }
  /// After K and V have been moved so: gives empty pages back and numbers the row's others from 0
  /// on, which moves their tokens to other slots without a copy.
  ///
  /// @param lanes  what `compaction` returned
  /// @return the lanes in which a token has another slot than before
  std::vector<moved_lane> compacted(index_t row, std::vector<moved_lane> lanes) {
    std::fill_n(tokens_.data() + entry(row, 0), row_pages(), 0);
    for (moved_lane const& lane : lanes) {
      for (index_t const slot : lane.new_slot_of) {
        if (slot >= 0) ++tokens_[entry(row, slot / page_size_)];
      }
    }
    std::vector<index_t> const number = close_gaps(row);
    std::vector<moved_lane> moved;
    for (moved_lane& lane : lanes) {
      std::uint8_t* const held = held_.data() + first_cell(row, lane.layer, lane.kv_head);
      std::fill_n(held, shape_.slots, std::uint8_t{0});
      bool same = true;
      for (index_t slot = 0; slot < shape_.slots; ++slot) {
        index_t& now = lane.new_slot_of[size(slot)];
        if (now < 0) continue;
        now = number[size(now / page_size_)] * page_size_ + now % page_size_;
        held[now] = 1;
        same = same && now == slot;
      }
      if (!same) moved.push_back(std::move(lane));
    }
    return moved;
  }

 private:
  static constexpr std::size_t size(index_t count) noexcept {
    return static_cast<std::size_t>(count);
  }
  /// The number-th page of a row, in `table_` and `tokens_`.
  std::size_t entry(index_t row, index_t number) const noexcept {
    return size(row) * size(row_pages()) + size(number);
  }
  index_t lane_layers() const noexcept { return reach_ == scope::model ? 1 : shape_.layers; }
  index_t lane_heads() const noexcept { return reach_ == scope::kv_head ? shape_.kv_heads : 1; }
  /// Where a lane begins in `held_`.
  std::size_t first_cell(index_t row, index_t layer, index_t kv_head) const noexcept {
    index_t const l = reach_ == scope::model ? 0 : std::max(layer, 0);
    index_t const h = reach_ == scope::kv_head ? std::max(kv_head, 0) : 0;
    return ((size(row) * size(lane_layers()) + size(l)) * size(lane_heads()) + size(h)) *
           size(shape_.slots);
  }
  /// Lanes are of this scope from now on.
  void serve(scope reach) {
    if (reach == reach_ && !held_.empty()) return;
    if (pool_.free() < pool_.size()) {
      throw std::logic_error(std::string("adore: paged store: tokens are held in lanes of scope ") +
                             word_of(reach_) + ", and scope " + word_of(reach) + " is asked for");
    }
    reach_ = reach;
    held_.assign(
        size(shape_.sequences) * size(lane_layers()) * size(lane_heads()) * size(shape_.slots), 0);
  }
  /// Calls action(layer, kv_head) for each lane of a row.
  template <class Action>
  void for_lanes(Action&& action) const {
    for (index_t layer = 0; layer < lane_layers(); ++layer) {
      for (index_t head = 0; head < lane_heads(); ++head) {
        action(reach_ == scope::model ? -1 : layer, reach_ == scope::kv_head ? head : -1);
      }
    }
  }

  bool owns_page(index_t row, index_t number) const noexcept {
    index_t const there = page(row, number);
    return there != no_page && pool_.holders(there) == 1;
  }
  /// Gives a row's empty pages back and moves the others to its first numbers.
  ///
  /// @return [old number] new number, -1 where no page is left
  std::vector<index_t> close_gaps(index_t row) {
    std::vector<index_t> number(size(row_pages()), -1);
    index_t next = 0;
    for (index_t old = 0; old < row_pages(); ++old) {
      index_t const here = std::exchange(table_[entry(row, old)], no_page);
      index_t const tokens = std::exchange(tokens_[entry(row, old)], 0);
      if (here == no_page) continue;
      if (tokens == 0) {
        pool_.drop(here);
        continue;
      }
      table_[entry(row, next)] = here;
      tokens_[entry(row, next)] = tokens;
      number[size(old)] = next++;
    }
    return number;
  }

  /// How many pages it takes from the pool that the row writes into these slots.
  index_t count_wanted(index_t row, std::span<index_t const> slots) noexcept {
    index_t count = 0;
    for (index_t const slot : slots) {
      index_t const number = slot / page_size_;
      if (wanted_[size(number)] != 0 || owns_page(row, number)) continue;
      wanted_[size(number)] = 1;
      ++count;
    }
    for (index_t const slot : slots) wanted_[size(slot / page_size_)] = 0;
    return count;
  }
  void require_pages(index_t row, index_t wanted) const {
    if (wanted <= pool_.free()) return;
    throw std::length_error("adore: paged store: row " + std::to_string(row) + " needs " +
                            std::to_string(wanted) + " more pages and " +
                            std::to_string(pool_.free()) + " of " + std::to_string(pool_.size()) +
                            " are free; close a row, or give the store more pages");
  }
  /// Gives the row a number-th page that nobody else holds.
  void own(index_t row, index_t number) {
    if (owns_page(row, number)) return;
    index_t& here = table_[entry(row, number)];
    index_t const fresh = pool_.take();
    if (here != no_page) {
      copies_.push_back({here, fresh});
      pool_.drop(here);
    }
    here = fresh;
  }

  kv_shape shape_;
  index_t page_size_;
  page_pool pool_;
  std::vector<index_t> table_;      // [row, page of the row]
  std::vector<index_t> tokens_;     // [row, page of the row]: tokens in it, of all lanes of the row
  scope reach_ = scope::model;      // of the lanes that it has been told of
  std::vector<std::uint8_t> held_;  // [row, layer, kv_head, slot] as far as the scope has them
  // scratch
  std::vector<page_copy> copies_;
  std::vector<std::uint8_t> wanted_;  // [page of the row], zeros between calls
};

}  // namespace adore
