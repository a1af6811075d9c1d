// SPDX-License-Identifier: Apache-2.0
// Strided attention as eviction against its tables: unbounded, bounded, and with doubling.
#include "adore/policies/strided.hpp"

#include "adore/policies/strided_doubling.hpp"
#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <map>

namespace adore::testing {

TEST_CASE("the unbounded stride keeps its window and the whole grid") {
  table const kept = lists(
      "0 | 0 1 | 0 1 2 | 0 2 3 | 0 3 4 | 0 3 4 5 | 0 3 5 6 | 0 3 6 7 | 0 3 6 7 8 | "
      "0 3 6 8 9 | 0 3 6 9 10");
  std::map<position_t, position_t> const evicted{{3, 1}, {4, 2}, {6, 4}, {7, 5}, {9, 7}, {10, 8}};
  ledger_driver driver(strided{.interval = 3, .window = 2});
  for (position_t n = 0; n <= 10; ++n) {
    auto const gone = driver.step_blind();
    CHECK(gone == (evicted.contains(n) ? position_list{evicted.at(n)} : position_list{}));
    CHECK(driver.kept() == kept[static_cast<std::size_t>(n)]);
  }
}

TEST_CASE("the size of an unbounded stride is its window and the grid before it") {
  for (index_t interval = 1; interval <= 5; ++interval) {
    for (index_t phase = 0; phase < interval; ++phase) {
      ledger_driver driver(strided{.interval = interval, .window = 3, .phase = phase});
      for (position_t n = 0; n < 40; ++n) {
        driver.step_blind();
        position_list formula;
        for (position_t j = 0; j <= n; ++j) {
          if (j > n - 3 || j % interval == phase) formula.push_back(j);
        }
        CHECK(driver.kept() == formula);
      }
    }
  }
}

TEST_CASE("an interval of 1 keeps everything") {
  ledger_driver driver(strided{.interval = 1, .window = 2});
  for (position_t n = 0; n < 20; ++n) CHECK(driver.step_blind().empty());
}

TEST_CASE("the bounded stride drops off the grid first, then the oldest of the grid") {
  table const kept = lists(
      "0 2 3 4 | 0 3 4 5 | 0 3 5 6 | 0 3 6 7 | 3 6 7 8 | 3 6 8 9 | 3 6 9 10 | "
      "6 9 10 11 | 6 9 11 12");
  position_list const evicted{1, 2, 4, 5, 0, 7, 8, 3, 10};
  ledger_driver driver(
      strided{.interval = 3, .window = 2, .bound = stride_bound::drop_oldest_grid, .limit = 4});
  for (position_t n = 0; n < 4; ++n) CHECK(driver.step_blind().empty());
  for (std::size_t i = 0; i < kept.size(); ++i) {
    CHECK(driver.step_blind() == position_list{evicted[i]});
    CHECK(driver.kept() == kept[i]);
  }
}

TEST_CASE("a stride that doubles covers the whole past ever more coarsely") {
  // the interval becomes 4 at n = 5 and 8 at n = 9
  table const kept = lists("0 2 3 | 0 2 4 | 0 4 5 | 0 4 6 | 0 4 7 | 0 4 8 | 0 8 9");
  ledger_driver driver(strided_doubling{.interval = 2, .window = 1, .limit = 3});
  driver.step_blind(3);
  for (position_list const& expected : kept) {
    driver.step_blind();
    CHECK(driver.kept() == expected);
    index_t const doublings = driver.books.slots_of(0).lane_state->doublings;
    CHECK(doublings == (driver.next() <= 5 ? 0 : driver.next() <= 9 ? 1 : 2));
  }
}

TEST_CASE("a stride doubles only if that lets a token fall") {
  // what stands at the phase is on every grid: alone it leaves, and the interval stays
  ledger_driver driver(strided_doubling{.interval = 2, .window = 2, .limit = 3});
  auto const doublings = [&] { return driver.books.slots_of(0).lane_state->doublings; };
  driver.step_blind(3);
  CHECK(driver.set_budget(2) == position_list{0});
  CHECK(doublings() == 0);
  for (position_t n = 3; n < 8; ++n) {  // 2, 4, 6 leave the window on ever coarser grids
    CHECK(driver.step_blind() == position_list{n - 2});
  }
  CHECK(doublings() == 2);
  CHECK(driver.kept() == position_list{6, 7});
}

}  // namespace adore::testing
