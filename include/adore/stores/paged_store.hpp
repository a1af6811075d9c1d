// SPDX-License-Identifier: Apache-2.0
// K/V in host memory in pages that rows take when they need them, share after a fork, and give
// back.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/stores/page_lists.hpp"
#include "adore/stores/page_tables.hpp"
#include "adore/stores/page_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// How a paged_store is cut up.
struct page_options {
  index_t page_size = 16;  ///< slots per page; a page holds them for all layers and KV heads
  index_t pages = 0;       ///< for all rows together; 0: as many as all rows can fill
};

/// The plan chooses the slots, as in a host_store; slot s of a row lies in its page s / page_size.
/// A page is the row's from the moment when a slot of it is reserved, and as long as a lane of the
/// row holds a token in it.
///
/// What comes free: a released token leaves a hole, and new tokens fill the holes in the row's own
/// pages first, so that a lane at its budget needs no more memory under any policy. Pages come free
/// when a row is closed, when all tokens of a page leave (`in_blocks` of the same size, if no other
/// lane of the row has a token there), and by `compact`, which pays when lanes have become smaller
/// for good.
///
/// After a `fork` both rows hold all pages. A page of two holders is never written: the row that is
/// about to write gets a copy. A token that one row releases stays for the other: who sits in a
/// page is for each row's books to say and not written in the page, so that a release copies
/// nothing.
///
/// Source: Kwon et al., arXiv 2309.06180, section 4 (blocks, tables, copy on write).
/// @tparam T  element type, convertible to and from float
template <class T = float>
class paged_store {
 public:
  using value_type = T;
  static constexpr scope finest_scope = scope::kv_head;

  /// @param shape  slots are rounded up to whole pages: a snapshot of a cache on a store that does
  ///               not round does not fit, unless its slots are a multiple of the page size
  /// @throws std::invalid_argument naming the field, if a page has no slot, the pages are too few
  ///         for one full row, or their numbers are no `index_t`
  explicit paged_store(kv_shape const& shape, page_options const& how = {})
      : page_size_(checked_size(how, shape)),
        shape_(in_pages(shape, page_size_)),
        tables_(shape_, page_size_, checked_pages(how, shape_)),
        page_elements_(static_cast<std::size_t>(shape.kv_heads) *
                       static_cast<std::size_t>(page_size_) *
                       static_cast<std::size_t>(shape.channels)),
        layer_elements_(page_elements_ * (static_cast<std::size_t>(pages()) + 1)),
        keys_(layer_elements_ * static_cast<std::size_t>(shape.layers)),
        values_(keys_.size()) {}

  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return page_size_; }
  index_t pages() const noexcept { return tables_.pool().size(); }
  index_t free_pages() const noexcept { return tables_.pool().free(); }
  bool owns(index_t row, index_t slot) const noexcept { return tables_.owns(row, slot); }
  std::size_t allocated_bytes() const noexcept { return 2 * keys_.size() * sizeof(T); }

  /// [page, kv_head, slot in page, channel], `pages() + 1` pages; the view is valid until the store
  /// is copied or moved. What is written to a slot that has not been reserved goes to page 0, which
  /// nobody holds, and is lost without a word.
  page_view<T> keys(index_t layer) noexcept { return view(keys_, layer); }
  page_view<T> values(index_t layer) noexcept { return view(values_, layer); }
  /// Read the warnings at `page_lists` first.
  page_lists lists() { return lister_.list(tables_); }

  /// @throws std::length_error, with nothing changed, if there are too few free pages
  void reserve(index_t row, index_t layer, index_t kv_head, std::span<index_t const> slots) {
    for (page_copy const& copy : tables_.reserve(row, layer, kv_head, slots)) {
      for (std::vector<T>* const data : {&keys_, &values_}) {
        for (T* pages = data->data(); pages != data->data() + data->size();
             pages += layer_elements_) {
          std::copy_n(pages + static_cast<std::size_t>(copy.from) * page_elements_,
                      page_elements_,
                      pages + static_cast<std::size_t>(copy.to) * page_elements_);
        }
      }
    }
  }
  /// Only slots are looked at, and those that hold nothing are passed over.
  ///
  /// @return page_size for each page that this made free: none as long as something is left in it,
  ///         in another lane or for another row
  index_t release(released_positions const& tokens) {
    return tables_.release(tokens.row, tokens.layer, tokens.kv_head, tokens.slots);
  }
  /// `to` goes on from all pages of `from`; no K/V is copied.
  ///
  /// @throws std::logic_error if `to` holds pages
  void fork(index_t from, index_t to) { tables_.fork(from, to); }

  /// Moves the tokens of each lane of a row together and gives the emptied pages back. In place and
  /// in ascending order: a token goes to a lower slot, whose own token has gone before. Pages that
  /// another row holds stay as they are, so that this needs no free page. Then the row's pages are
  /// numbered from 0 on: without shared pages, tokens lie in the slots 0, 1, ...
  ///
  /// @return the lanes in which a token has another slot, for `kv_cache::compact` to tell the books
  std::vector<moved_lane> compact(index_t row) {
    std::vector<moved_lane> lanes = tables_.compaction(row);
    for (moved_lane const& lane : lanes) move_down(lane);
    return tables_.compacted(row, std::move(lanes));
  }

 private:
  /// One number more must be there: of a page 0, and of a lane's slots.
  static constexpr std::size_t most = std::numeric_limits<index_t>::max() - 1;

  static index_t checked_size(page_options const& how, kv_shape const& shape) {
    require_field(
        how.page_size >= 1, "page_options.page_size", how.page_size, "must be at least 1");
    auto const size = static_cast<std::size_t>(how.page_size);
    require_field((static_cast<std::size_t>(shape.slots) + size - 1) / size * size <= most,
                  "page_options.page_size",
                  how.page_size,
                  "the slots of a row in whole pages must be fewer than 2^31 - 1");
    return how.page_size;
  }
  static kv_shape in_pages(kv_shape shape, index_t page_size) {
    auto const size = static_cast<std::size_t>(page_size);
    shape.slots =
        static_cast<index_t>((static_cast<std::size_t>(shape.slots) + size - 1) / size * size);
    return shape;
  }
  static index_t checked_pages(page_options const& how, kv_shape const& shape) {
    index_t const of_row = shape.slots / how.page_size;
    require_field(how.pages == 0 || how.pages >= of_row,
                  "page_options.pages",
                  how.pages,
                  "must be 0 or enough for the slots of one row");
    std::size_t const pages = how.pages > 0 ? static_cast<std::size_t>(how.pages)
                                            : static_cast<std::size_t>(shape.sequences) *
                                                  static_cast<std::size_t>(of_row);
    require_field(pages <= most, "page_options.pages", pages, "must be fewer than 2^31 - 1");
    return static_cast<index_t>(pages);
  }
  page_view<T> view(std::vector<T>& data, index_t layer) noexcept {
    return {data.data() + layer_elements_ * static_cast<std::size_t>(layer),
            tables_.data(),
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels,
            page_size_};
  }

  void move_down(moved_lane const& lane) {
    bool const all_layers = lane.layer < 0;
    bool const all_heads = lane.kv_head < 0;
    index_t const end_layer = all_layers ? shape_.layers : lane.layer + 1;
    index_t const end_head = all_heads ? shape_.kv_heads : lane.kv_head + 1;
    for (index_t layer = all_layers ? 0 : lane.layer; layer < end_layer; ++layer) {
      for (page_view<T> const view : {keys(layer), values(layer)}) {
        for (index_t head = all_heads ? 0 : lane.kv_head; head < end_head; ++head) {
          for (index_t slot = 0; slot < shape_.slots; ++slot) {
            index_t const to = lane.new_slot_of[static_cast<std::size_t>(slot)];
            if (to < 0 || to == slot) continue;
            std::copy_n(view(lane.row, head, slot), shape_.channels, view(lane.row, head, to));
          }
        }
      }
    }
  }

  index_t page_size_;
  kv_shape shape_;
  page_tables tables_;
  page_lister lister_;
  std::size_t page_elements_, layer_elements_;
  std::vector<T> keys_, values_;  // [layer, page, kv_head, slot in page, channel]
};

static_assert(paging_store<paged_store<float>> && compacting_store<paged_store<float>>);

}  // namespace adore
