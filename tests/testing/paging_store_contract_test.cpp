// SPDX-License-Identifier: Apache-2.0
// Stores in pages keep the contract, and those with one fault each are named by their fault.
#include "adore/stores/page_tables.hpp"
#include "adore/stores/page_view.hpp"
#include "adore/stores/paged_store.hpp"
#include "adore/testing/store_contract.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

using adore::index_t;
using adore::kv_shape;
using adore::page_view;
using adore::testing::check_store;
using adore::testing::contract_violation;

namespace {

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
};

/// Pages as a paged_store has them, and a fault.
class faulty_pages {
 public:
  static constexpr adore::scope finest_scope = adore::scope::kv_head;

  faulty_pages(kv_shape const& shape, page_fault bug)
      : shape_(shape),
        bug_(bug),
        // more than the rows can fill, for faults that need some
        tables_(shape_,
                size_of_block(),
                shape.sequences * shape.slots / size_of_block() +
                    (bug == page_fault::too_few_pages ? -1 : 4)),
        page_(index(shape.kv_heads * size_of_block() * shape.channels)),
        keys_(index(shape.layers * (tables_.pool().size() + 1)) * page_),
        values_(keys_.size()) {}

  kv_shape shape() const { return shape_; }
  index_t capacity() const { return shape_.slots; }
  index_t granule() const { return 4; }
  index_t free_pages() const { return tables_.pool().free() - leaked_; }
  bool owns(index_t row, index_t slot) const {
    return bug_ == page_fault::owns_what_it_shares ? page_of(row, slot) != adore::no_page
                                                   : tables_.owns(row, slot);
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
    bool const again = !slots.empty() && tables_.holds(row, layer, kv_head, slots.front());
    for (adore::page_copy const& copy : tables_.reserve(row, layer, kv_head, slots)) {
      if (bug_ == page_fault::keeps_copies) ++leaked_;
      if (bug_ == page_fault::forgets_the_copy) continue;
      move(keys_, copy);
      if (bug_ != page_fault::copies_keys_only) move(values_, copy);
    }
    if (bug_ == page_fault::takes_a_page_twice && again) ++leaked_;
  }
  index_t release(adore::released_positions const& tokens) {
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
        page_of(tokens.row, slots.front()) == adore::no_page) {
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
    tables_.fork(from, to);
    if (bug_ != page_fault::copies_at_once) return;
    for (index_t slot = 0; slot < shape_.slots; ++slot) {
      if (tables_.holds(to, -1, -1, slot)) reserve(to, -1, -1, {&slot, 1});
    }
  }

 private:
  static std::size_t index(index_t i) { return static_cast<std::size_t>(i); }
  index_t size_of_block() const { return bug_ == page_fault::blocks_of_another_size ? 8 : 4; }
  index_t page_of(index_t row, index_t slot) const {
    return tables_.data()[row * (shape_.slots / size_of_block()) + slot / size_of_block()];
  }
  bool is_shared(index_t row, index_t slot) const {
    index_t const page = page_of(row, slot);
    return page != adore::no_page && tables_.pool().holders(page) > 1;
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
  void move(std::vector<float>& data, adore::page_copy const& copy) const {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      float* const pages = data.data() + index(layer * (tables_.pool().size() + 1)) * page_;
      std::copy_n(pages + index(copy.from) * page_, page_, pages + index(copy.to) * page_);
    }
  }

  kv_shape shape_;
  page_fault bug_;
  adore::page_tables tables_;
  std::size_t page_;  // elements
  std::vector<float> keys_, values_;
  index_t leaked_ = 0;
};

/// What check_store says about a store with this fault, empty if nothing.
std::string complaint_about(page_fault bug) {
  try {
    check_store([bug](kv_shape const& shape) { return faulty_pages(shape, bug); });
  } catch (contract_violation const& broken) {
    return broken.what();
  }
  return "";
}
void check_names(page_fault bug, std::string const& part) {
  std::string const text = complaint_about(bug);
  CAPTURE(text);
  CAPTURE(part);
  CHECK(text.find(part) != std::string::npos);
}

auto pages_of(adore::page_options const& how) {
  return [how](kv_shape const& shape) { return adore::paged_store<float>(shape, how); };
}

}  // namespace

TEST_CASE("store contract: paged_store keeps it with pages of any size") {
  for (index_t const page_size : {1, 2, 3, 7, 12}) check_store(pages_of({.page_size = page_size}));
  check_store(pages_of({.page_size = 4, .pages = 40}));
  check_store(
      [](kv_shape const& shape) { return adore::paged_store<_Float16>(shape, {.page_size = 8}); });
  check_store(pages_of({.page_size = 16}), {.shape = {1, 1, 3, 70, 33}, .steps = 80});
  check_store([](kv_shape const& shape) { return faulty_pages(shape, page_fault::none); });
}

TEST_CASE("store contract: pages that are no blocks of granule() slots are named") {
  check_names(page_fault::blocks_of_another_size,
              "after slots 0 to 4 are reserved 1 pages are taken; with granule() = 4 they are 2");
  check_names(page_fault::takes_a_page_twice, "reserving a slot twice takes a page twice");
  check_names(page_fault::comes_free_with_its_first_token,
              "release of slot 0 of a block of 4 says that 4 came free");
  check_names(page_fault::never_comes_free, "a page comes free with its last token");
  check_names(page_fault::counts_tokens,
              "says that 1 came free, but of free pages there are 0 more");
  check_names(page_fault::too_few_pages, "there are too few pages for all rows at once");
}

TEST_CASE("store contract: a page that is released once more after it was used again is named") {
  check_names(page_fault::gives_back_what_another_has, "is released once more");
}

TEST_CASE("store contract: a prefix that is not shared, or is lost or overwritten, is named") {
  check_names(page_fault::copies_at_once, "a shared prefix is there once");
  check_names(page_fault::forks_nothing, "does not hold what the old one holds");
  check_names(page_fault::writes_through, "has written into a page that another one holds");
  check_names(page_fault::forgets_the_copy, "the copy of a shared page lacks K or V of slot 1");
  check_names(page_fault::copies_keys_only, "the copy of a shared page lacks K or V of slot 1");
  check_names(page_fault::frees_under_the_other, "which another sequence holds");
  check_names(page_fault::clears_shared_slots, "under the sequence that still holds it");
  check_names(page_fault::owns_what_it_shares, "owns(row 0, slot 0) is true");
  check_names(page_fault::keeps_copies, "is still held by two sequences");
}

TEST_CASE("store contract: a rejected draft that leaves something behind is named") {
  check_names(page_fault::keeps_rejected_drafts, "after a draft was rejected 1 of its pages");
  check_names(page_fault::a_draft_leaves_a_trace, "a rejected draft has changed K or V");
}

TEST_CASE("store contract: pages too large for the test are refused") {
  CHECK_THROWS_AS(check_store(pages_of({.page_size = 24})), std::invalid_argument);
}
