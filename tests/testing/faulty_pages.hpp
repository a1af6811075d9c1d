// SPDX-License-Identifier: Apache-2.0
// A store in pages with one fault of its owner's choice, for the tests of the conformance test.
#pragma once

#include "adore/stores/page_tables.hpp"
#include "adore/stores/page_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace adore::testing {

enum class page_fault {
  none,
  blocks_of_another_size,
  takes_a_page_twice,
  comes_free_with_its_first_token,
  never_comes_free,
  counts_tokens,
  gives_back_what_another_has,
  copies_at_once,
  forks_nothing,
  writes_through,
  forgets_the_copy,
  copies_keys_only,
  frees_under_the_other,
  clears_shared_slots,
  owns_what_it_shares,
  keeps_copies,
  keeps_rejected_drafts,
  a_draft_leaves_a_trace,
  too_few_pages,
  reserves_what_it_can,
  refuses_in_other_words,
  owns_what_it_lacks,
  forks_over_pages,
  moves_in_silence,
};

/// Pages as a paged_store has them, and a fault.
class faulty_pages {
 public:
  static constexpr scope finest_scope = scope::kv_head;

  faulty_pages(kv_shape const& shape, page_fault bug)
      : shape_(shape),
        bug_(bug),
        // more than the rows can fill, for faults that need some
        tables_(shape_,
                size_of_block(),
                shape.sequences * shape.slots / size_of_block() + (is_scarce(bug) ? -1 : 4)),
        page_(index(shape.kv_heads * size_of_block() * shape.channels)),
        keys_(index(shape.layers * (tables_.pool().size() + 1)) * page_),
        values_(keys_.size()) {}

  kv_shape shape() const { return shape_; }
  index_t capacity() const { return shape_.slots; }
  index_t granule() const { return 4; }
  index_t free_pages() const { return tables_.pool().free() - leaked_; }
  bool owns(index_t row, index_t slot) const {
    bool const has_page = page_of(row, slot) != no_page;
    if (bug_ == page_fault::owns_what_it_lacks && !has_page) return true;
    return bug_ == page_fault::owns_what_it_shares ? has_page : tables_.owns(row, slot);
  }
  page_view<float> keys(index_t layer) { return view(keys_, layer); }
  page_view<float> values(index_t layer) { return view(values_, layer); }

  void reserve(index_t row, index_t layer, index_t kv_head, std::span<index_t const> slots) {
    if (bug_ == page_fault::writes_through) {
      std::vector<index_t> without;
      for (index_t const slot : slots) {
        if (!is_shared(row, slot)) without.push_back(slot);
      }
      tables_.reserve(row, layer, kv_head, without);
      return;
    }
    if (bug_ == page_fault::reserves_what_it_can) {
      for (index_t const& slot : slots) tables_.reserve(row, layer, kv_head, {&slot, 1});
      return;
    }
    if (bug_ == page_fault::refuses_in_other_words && free_pages() * 4 < count(slots)) {
      throw std::runtime_error("no");
    }
    bool const again = !slots.empty() && tables_.holds(row, layer, kv_head, slots.front());
    for (page_copy const& copy : tables_.reserve(row, layer, kv_head, slots)) {
      if (bug_ == page_fault::keeps_copies) ++leaked_;
      if (bug_ == page_fault::forgets_the_copy) continue;
      move(keys_, copy);
      if (bug_ != page_fault::copies_keys_only) move(values_, copy);
    }
    if (bug_ == page_fault::takes_a_page_twice && again) ++leaked_;
  }
  index_t release(released_positions const& tokens) {
    std::vector<index_t> slots(tokens.slots.begin(), tokens.slots.end());
    if (bug_ == page_fault::keeps_rejected_drafts && tokens.positions.empty() && slots.size() > 8) {
      return 0;
    }
    if (bug_ == page_fault::comes_free_with_its_first_token && !slots.empty()) {
      index_t const first = slots.front() / 4 * 4;
      slots = {first, first + 1, first + 2, first + 3};
    }
    if (bug_ == page_fault::never_comes_free) return 0;
    if (bug_ == page_fault::gives_back_what_another_has && !slots.empty() &&
        page_of(tokens.row, slots.front()) == no_page) {
      index_t const other = shape_.sequences - 1;
      std::vector<index_t> last;
      for (index_t slot = shape_.slots - 4; slot < shape_.slots; ++slot) last.push_back(slot);
      return tables_.release(other, tokens.layer, tokens.kv_head, last);
    }
    bool const shared = !slots.empty() && is_shared(tokens.row, slots.front());
    if (bug_ == page_fault::clears_shared_slots && shared) {
      for (index_t const slot : slots) *values(0)(tokens.row, 0, slot) = 0;
    }
    index_t freed = tables_.release(tokens.row, tokens.layer, tokens.kv_head, slots);
    if (bug_ == page_fault::frees_under_the_other && shared) {
      for (index_t row = 0; row < shape_.sequences; ++row) {
        freed += tables_.release(row, tokens.layer, tokens.kv_head, slots);
      }
    }
    if (bug_ == page_fault::a_draft_leaves_a_trace && freed > 0 && slots.size() > 8) {
      *keys(0)(0, 0, 0) = 9;
    }
    return bug_ == page_fault::counts_tokens ? static_cast<index_t>(slots.size()) : freed;
  }
  void fork(index_t from, index_t to) {
    if (bug_ == page_fault::forks_nothing) return;
    if (bug_ == page_fault::forks_over_pages) {
      std::vector<index_t> all;
      for (index_t slot = 0; slot < shape_.slots; ++slot) all.push_back(slot);
      tables_.release(to, -1, -1, all);
    }
    tables_.fork(from, to);
    if (bug_ != page_fault::copies_at_once) return;
    for (index_t slot = 0; slot < shape_.slots; ++slot) {
      if (tables_.holds(to, -1, -1, slot)) reserve(to, -1, -1, {&slot, 1});
    }
  }
  /// Of lanes of scope model.
  std::vector<moved_lane> compact(index_t row) {
    auto lanes = tables_.compaction(row);
    for (index_t slot = 0; slot < shape_.slots; ++slot) {
      index_t const to = lanes[0].new_slot_of[index(slot)];
      if (to < 0) continue;
      for (index_t layer = 0; layer < shape_.layers; ++layer) {
        for (page_view<float> const view : {keys(layer), values(layer)}) {
          for (index_t head = 0; head < shape_.kv_heads; ++head) {
            std::copy_n(view(row, head, slot), shape_.channels, view(row, head, to));
          }
        }
      }
    }
    lanes = tables_.compacted(row, std::move(lanes));
    if (bug_ == page_fault::moves_in_silence) lanes.clear();
    return lanes;
  }

 private:
  static bool is_scarce(page_fault bug) {
    return bug == page_fault::too_few_pages || bug == page_fault::reserves_what_it_can ||
           bug == page_fault::refuses_in_other_words;
  }
  static index_t count(std::span<index_t const> slots) {
    return static_cast<index_t>(slots.size());
  }
  static std::size_t index(index_t i) { return static_cast<std::size_t>(i); }
  index_t size_of_block() const { return bug_ == page_fault::blocks_of_another_size ? 8 : 4; }
  index_t page_of(index_t row, index_t slot) const {
    return tables_.data()[row * (shape_.slots / size_of_block()) + slot / size_of_block()];
  }
  bool is_shared(index_t row, index_t slot) const {
    index_t const page = page_of(row, slot);
    return page != no_page && tables_.pool().holders(page) > 1;
  }
  page_view<float> view(std::vector<float>& data, index_t layer) {
    return {data.data() + index(layer * (tables_.pool().size() + 1)) * page_,
            tables_.data(),
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels,
            size_of_block()};
  }
  void move(std::vector<float>& data, page_copy const& copy) const {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      float* const pages = data.data() + index(layer * (tables_.pool().size() + 1)) * page_;
      std::copy_n(pages + index(copy.from) * page_, page_, pages + index(copy.to) * page_);
    }
  }

  kv_shape shape_;
  page_fault bug_;
  page_tables tables_;
  std::size_t page_;  // elements
  std::vector<float> keys_, values_;
  index_t leaked_ = 0;
};

}  // namespace adore::testing
