// SPDX-License-Identifier: Apache-2.0
// Among equals the newest goes.
#include "adore/policies/adaptors/newest_of_equals_first.hpp"

#include "adore/policies/h2o.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/sliding_window.hpp"
#include "random_calls.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <random>
#include <stdexcept>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

TEST_CASE("the published table with the other tie rule") {
  table const rows = lists("16 | 10 6 | 8 3 5 | 6 2 5 3 | 5 1 4 2 4 | 3 2 1 6 4 | 3 1 7 3 2");
  table const kept = lists("0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 4 5 | 0 2 5 6");
  position_list const evicted{1, 3, 4};
  ledger_driver driver(newest_of_equals_first<h2o>{.of = {.heavy = 2, .recent = 2}});
  for (std::size_t n = 0; n < rows.size(); ++n) {
    auto const released = driver.step({sixteenths(driver.attended(), rows[n])});
    CHECK(released == (n < 4 ? position_list{} : position_list{evicted[n - 4]}));
    CHECK(driver.kept() == kept[n]);
  }
}

TEST_CASE("many equals at once go from the newest on") {
  ledger_driver driver(newest_of_equals_first<h2o>{.of = {.heavy = 12, .recent = 2}});
  driver.step_blind(14);
  CHECK(driver.set_budget(10) == position_list{11, 10, 9, 8});
  CHECK(driver.set_budget(3) == position_list{7, 6, 5, 4, 3, 2, 1});
  CHECK(driver.kept() == position_list{0, 12, 13});
}

TEST_CASE("policies that rank once take the rule too, in levels or not") {
  ledger_driver window(newest_of_equals_first<sliding_window>{.of = {.size = 3}});
  for (position_t n = 0; n < 8; ++n) {
    CHECK(window.step_blind() == (n < 3 ? position_list{} : position_list{n}));
  }
  CHECK(window.set_budget(1) == position_list{2, 1});

  ledger_driver norms(newest_of_equals_first<key_norm>{.of = {.size = 3, .recent = 1}});
  for (float const norm : {2.0F, 2.0F, 1.0F}) norms.step_token({norm, 0});
  CHECK(norms.step_token({2.0F, 0}) == position_list{1});  // 3 is recent
  CHECK(norms.step_token({1.0F, 0}) == position_list{3});
  CHECK(norms.kept() == position_list{0, 2, 4});
}

TEST_CASE("ties equal those of the literal model") {
  std::mt19937 random(47);
  for (int run = 0; run < 30; ++run) {
    index_t const heavy = static_cast<index_t>(random() % 7);
    index_t const recent = static_cast<index_t>(random() % 4);
    ledger_driver driver(newest_of_equals_first<h2o>{.of = {.heavy = heavy, .recent = recent}});
    literal::lane model(literal::h2o(heavy, recent), {.ties = literal::tie::evict_newest});
    while (driver.next() < 50) {
      random_call const call = draw_call(random, driver.kept(), driver.next());
      REQUIRE(driver.step(call.rows, call.accepted) ==
              positions_of(model.step(call.rows, call.accepted)));
    }
  }
}

TEST_CASE("the policy inside is validated") {
  CHECK_THROWS_WITH_AS((newest_of_equals_first<h2o>{.of = {.heavy = -1}}.validate()),
                       "adore: h2o.heavy = -1: must not be negative",
                       std::invalid_argument);
  newest_of_equals_first<h2o>{}.validate();
}

}  // namespace adore::testing
