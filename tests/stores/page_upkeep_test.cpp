// SPDX-License-Identifier: Apache-2.0
// What a paged store is asked for by the step of a lane.
#include "adore/stores/page_upkeep.hpp"

#include "adore/policies/sliding_window.hpp"
#include "adore/stores/paged_store.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace adore::testing {

TEST_CASE("a lane whose own pages have room is asked for no more slots than come") {
  struct asked_store : paged_store<float> {
    using paged_store<float>::paged_store;
    bool owns(index_t row, index_t slot) const {
      ++asked;
      return paged_store<float>::owns(row, slot);
    }
    mutable int asked = 0;
  };
  kv_shape const shape{1, 1, 1, 400, 1};
  asked_store pages(shape, {.page_size = 4});
  ledger<sliding_window> books({.size = 40}, shape, scope::model, 3);
  books.open(0, 0);
  std::vector<row_tokens> const rows{{.row = 0, .count = 3}};
  auto const step = [&] {
    pages.asked = 0;
    reserve_step<asked_store, sliding_window>(pages, books, rows, 0);
    books.place(0, 3);
    books.commit(0, 3, nullptr);
    books.advance(0, 3);
  };
  step();
  CHECK(pages.asked > 3);  // nothing is owned: the lane looks for its pages
  step();                  // slots 3, 4, 5: a page more
  CHECK(pages.asked > 3);
  for (int n = 0; n < 20; ++n) step();
  CHECK(pages.asked == 3);  // at the budget holes are in its own pages
  asked_store single(shape, {.page_size = 1});
  ledger<sliding_window> others({.size = 40}, shape, scope::model, 3);
  others.open(0, 0);
  reserve_step<asked_store, sliding_window>(single, others, rows, 0);
  CHECK(single.asked == 0);  // there is nothing to fill up
  CHECK(single.free_pages() == 397);
}

}  // namespace adore::testing
