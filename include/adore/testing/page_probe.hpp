// SPDX-License-Identifier: Apache-2.0
// The hands of the conformance tests on a store in pages.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore::testing::detail {

/// A store in pages under the hands of somebody who numbers what he writes. Lanes are of scope
/// model.
template <paging_store Store>
class page_probe {
 public:
  explicit page_probe(Store store) : store_(std::move(store)) {}

  audited_store<Store>& store() noexcept { return store_; }
  index_t granule() const { return store_.granule(); }
  index_t free_pages() const { return store_.free_pages(); }

  void reserve(index_t row, std::vector<index_t> const& slots) {
    store_.reserve(row, -1, -1, slots);
  }
  index_t release(index_t row, std::vector<index_t> const& slots) {
    return store_.release({row, -1, -1, {}, slots});
  }
  /// Slots of a block, from its first on.
  std::vector<index_t> block(index_t number, index_t count) const {
    std::vector<index_t> slots(static_cast<std::size_t>(count));
    std::iota(slots.begin(), slots.end(), number * granule());
    return slots;
  }
  void write(index_t row, std::vector<index_t> const& slots, index_t salt) {
    for (index_t const slot : slots) {
      for_cells(row, slot, slot, salt, [](auto& cell, auto number) { cell = number; });
    }
  }
  /// Are K and V there as they were written, in all layers and heads?
  bool reads(index_t row, std::vector<index_t> const& slots, index_t salt) {
    return std::all_of(
        slots.begin(), slots.end(), [&](index_t slot) { return reads(row, slot, slot, salt); });
  }
  /// Is there what was written to the slot `as`?
  bool reads(index_t row, index_t slot, index_t as, index_t salt) {
    bool same = true;
    for_cells(row, slot, as, salt, [&](auto const& cell, auto number) {
      same = same && static_cast<float>(cell) == static_cast<float>(number);
    });
    return same;
  }

 private:
  /// action(element&, the number that belongs there): small, for element types of few bits.
  template <class Action>
  void for_cells(index_t row, index_t slot, index_t as, index_t salt, Action&& action) {
    for (index_t layer = 0; layer < store_.shape().layers; ++layer) {
      index_t which = 0;
      for (auto const view : {kv_view_of(store_.keys(layer)), kv_view_of(store_.values(layer))}) {
        for (index_t head = 0; head < view.kv_heads; ++head) {
          for (index_t c = 0; c < view.channels; ++c) {
            using number = std::remove_cvref_t<decltype(*view(row, head, slot))>;
            index_t const value = (as * 5 + layer * 3 + head * 2 + c + which + salt * 7) % 16 + 1;
            action(view(row, head, slot)[c * view.channel_stride],
                   static_cast<number>(static_cast<float>(value)));
          }
        }
        which = 8;
      }
    }
  }

  audited_store<Store> store_;
};

}  // namespace adore::testing::detail
