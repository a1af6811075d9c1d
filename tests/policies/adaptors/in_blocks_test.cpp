// SPDX-License-Identifier: Apache-2.0
// Whole blocks by hand, and against the literal model's blocks.
#include "adore/policies/adaptors/in_blocks.hpp"

#include "adore/policies/h2o.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/tova.hpp"
#include "support/literal_attention_policies.hpp"
#include "support/random_rows.hpp"

#include <doctest/doctest.h>

#include <random>
#include <stdexcept>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

TEST_CASE("a block is as good as its best token, and goes as a whole") {
  ledger_driver driver(in_blocks<tova>{.of = {.size = 4}, .size = 2});
  for (int i = 0; i < 4; ++i) driver.step_blind();
  // the weakest token, 0, is in the block of the strongest, 1
  auto const row = sixteenths({0, 1, 2, 3, 4}, {1, 6, 3, 4, 2});
  CHECK(sorted(driver.step({row})) == position_list{2, 3});
  CHECK(driver.kept() == position_list{0, 1, 4});
}

TEST_CASE("blocks of a window leave at multiples of their size") {
  ledger_driver driver(in_blocks<sliding_window>{.of = sliding_window::of_budget(6), .size = 4});
  for (int i = 0; i < 6; ++i) CHECK(driver.step_blind().empty());
  CHECK(sorted(driver.step_blind()) == position_list{0, 1, 2, 3});
  for (int i = 0; i < 3; ++i) CHECK(driver.step_blind().empty());
  CHECK(sorted(driver.step_blind()) == position_list{4, 5, 6, 7});
  CHECK(driver.kept() == position_list{8, 9, 10});
}

TEST_CASE("while no block is complete tokens leave one by one") {
  ledger_driver driver(in_blocks<key_norm>{.of = {.size = 2}, .size = 8});
  driver.step_token({.squared_norm = 3.0F});
  driver.step_token({.squared_norm = 5.0F});
  CHECK(driver.step_token({.squared_norm = 4.0F}) == position_list{1});
}

TEST_CASE("blocks agree with the literal model") {
  for (index_t const granule : {1, 2, 3, 5}) {
    for (index_t const recent : {0, 2, 4}) {
      index_t const heavy = 10 - recent;
      ledger_driver driver(
          in_blocks<h2o>{.of = {.heavy = heavy, .recent = recent}, .size = granule});
      literal::lane lane(literal::h2o(heavy, recent), {.granule = granule});
      lane.open(0);
      std::mt19937 random(5);
      for (int i = 0; i < 80; ++i) {
        auto const count = 1 + static_cast<index_t>(random() % 3);
        auto const rows = random_rows(random, driver.kept(), driver.next(), count);
        driver.step(rows);
        lane.step(rows);
        REQUIRE(driver.kept() == lane.kept());
      }
    }
  }
}

TEST_CASE("a block of no tokens is refused") {
  CHECK_NOTHROW(in_blocks<h2o>{.size = 1}.validate());
  CHECK_THROWS_AS(in_blocks<h2o>{.size = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS((in_blocks<h2o>{.of = {.heavy = -1}}.validate()), std::invalid_argument);
}

}  // namespace adore::testing
