// SPDX-License-Identifier: Apache-2.0
// The tables of a paged store in the form of FlashInfer's `paged_kv_t`, to be copied to a device.
#pragma once

#include "adore/stores/page_tables.hpp"
#include "adore/types.hpp"

#include <span>
#include <vector>

namespace adore {

/// The rows' page numbers in the form of FlashInfer's `paged_kv_t` (include/flashinfer/page.cuh,
/// commit fb28d72): what a device needs to find the same pages. They are 1..n, and 0 (`no_page`)
/// where a row has no page in between: whoever holds K and V for them needs n + 1 pages, a
/// `gpu::device_pages` of `pages() + 1` too, since it numbers its own from 0 on.
///
/// FlashInfer attends each slot before the length that these tell, holes and page 0 included. Its
/// own attention is right only without holes: call `compact` first, and have lanes that hold
/// equally many tokens.
struct page_lists {
  std::span<index_t const> indices;  ///< [indptr[rows]] page numbers, row after row
  std::span<index_t const> indptr;   ///< [rows + 1] where a row's numbers begin
  /// [row] slots in use in its last page, holes before the last token included: 1..page_size, 0 if
  /// the row has no page
  std::span<index_t const> last_page_len;
};

/// Makes the lists, and owns them.
class page_lister {
 public:
  /// The pages of all rows up to each row's last token. Valid until the next call.
  page_lists list(page_tables const& tables) {
    indices_.clear();
    indptr_.assign(1, 0);
    last_page_len_.clear();
    for (index_t row = 0; row < tables.rows(); ++row) {
      index_t count = tables.row_pages();
      while (count > 0 && tables.page(row, count - 1) == no_page) --count;
      for (index_t n = 0; n < count; ++n) indices_.push_back(tables.page(row, n));
      indptr_.push_back(static_cast<index_t>(indices_.size()));
      last_page_len_.push_back(count == 0 ? 0 : tables.slots_in_use(row, count - 1));
    }
    return {indices_, indptr_, last_page_len_};
  }

 private:
  std::vector<index_t> indices_, indptr_, last_page_len_;
};

}  // namespace adore
