// SPDX-License-Identifier: Apache-2.0
// Which pages of a paged store are free, and how many rows hold each of the others.
#pragma once

#include "adore/types.hpp"

#include <cassert>
#include <cstddef>
#include <vector>

namespace adore {

/// What a row's table names where the row has no page: memory that is always there, so that every
/// slot has an address, and that no row holds. (vLLM does the same with its null block.)
inline constexpr index_t no_page = 0;

/// Pages 1 to `size()`. What came free last is used first, at first the lowest number.
class page_pool {
 public:
  explicit page_pool(index_t pages) : holders_(static_cast<std::size_t>(pages) + 1, 0) {
    free_.reserve(static_cast<std::size_t>(pages));
    for (index_t page = pages; page > no_page; --page) free_.push_back(page);
  }

  index_t size() const noexcept { return static_cast<index_t>(holders_.size()) - 1; }
  index_t free() const noexcept { return static_cast<index_t>(free_.size()); }
  /// Rows that hold the page, 0: it is free.
  index_t holders(index_t page) const noexcept { return holders_[static_cast<std::size_t>(page)]; }

  /// A page for one row.
  ///
  /// @pre free() > 0
  index_t take() noexcept {
    assert(!free_.empty());
    index_t const page = free_.back();
    free_.pop_back();
    holders_[static_cast<std::size_t>(page)] = 1;
    return page;
  }
  /// One more row holds the page.
  void share(index_t page) noexcept {
    assert(holders(page) > 0);
    ++holders_[static_cast<std::size_t>(page)];
  }
  /// One row less holds the page; true if it was the last one, and the page is free.
  bool drop(index_t page) noexcept {
    assert(holders(page) > 0);
    if (--holders_[static_cast<std::size_t>(page)] > 0) return false;
    free_.push_back(page);  // has room: it held all pages once
    return true;
  }

 private:
  std::vector<index_t> holders_;  // [page]
  std::vector<index_t> free_;     // the last one first out
};

}  // namespace adore
