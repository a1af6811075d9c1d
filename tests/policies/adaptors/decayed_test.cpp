// SPDX-License-Identifier: Apache-2.0
// Scores that fade.
#include "adore/policies/adaptors/decayed.hpp"

#include "adore/policies/adaptors/with_protection.hpp"
#include "adore/policies/decayed_h2o.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/tova.hpp"
#include "random_calls.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"

#include <doctest/doctest.h>

#include <random>
#include <stdexcept>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

template <class P>
concept can_decay = requires {
  typename decayed<P>;
};
static_assert(can_decay<h2o> && can_decay<decayed<h2o>> && can_decay<with_protection<h2o>>);
static_assert(!can_decay<tova>, "a score that is replaced at every query cannot fade");

}  // namespace

TEST_CASE("attention of k queries ago counts factor to the k-th") {
  ledger_driver driver(decayed<h2o>{.of = {.heavy = 8, .recent = 0}, .factor = 0.5F});
  driver.step({{{0, 1.0F}}});
  driver.step({{{0, 0.75F}, {1, 0.25F}}, {{0, 0.5F}, {1, 0.25F}, {2, 0.25F}}});
  CHECK(driver.state(0).mass == 0.25F + 0.375F + 0.5F);
  CHECK(driver.state(1).mass == 0.125F + 0.25F);
  CHECK(driver.state(2).mass == 0.25F);
  driver.step_blind(3);
  CHECK(driver.state(0).mass == 1.125F / 8.0F);
}

TEST_CASE("an old heavy hitter makes room for a new one") {
  ledger_driver fades(decayed<h2o>{.of = {.heavy = 1, .recent = 1}, .factor = 0.5F});
  ledger_driver lasts(h2o{.heavy = 1, .recent = 1});
  for (auto* const step : {+[](position_t) {
                             return weight_row{{0, 1.0F}};
                           },
                           +[](position_t n) {
                             return weight_row{{n, 0.75F}};
                           }}) {
    fades.step({step(fades.next())});
    lasts.step({step(lasts.next())});
  }
  // masses of 0 and 1: 1/4 and 3/8 where they fade, else 1 and 3/4
  CHECK(fades.step_blind() == position_list{0});
  CHECK(lasts.step_blind() == position_list{1});
}

TEST_CASE("decayed H2O by adaptor and by name keep the same sets") {
  std::mt19937 random(41);
  for (int run = 0; run < 40; ++run) {
    index_t const heavy = static_cast<index_t>(random() % 7);
    index_t const recent = static_cast<index_t>(random() % 4);
    ledger_driver adapted(decayed<h2o>{.of = {.heavy = heavy, .recent = recent}, .factor = 0.5F});
    ledger_driver named(decayed_h2o{.heavy = heavy, .recent = recent, .factor = 0.5F});
    literal::lane model(literal::decayed_h2o(heavy, recent, 0.5F));
    while (named.next() < 60) {
      random_call const call = draw_call(random, named.kept(), named.next());
      auto const released = adapted.step(call.rows, call.accepted);
      REQUIRE(released == named.step(call.rows, call.accepted));
      REQUIRE(released == positions_of(model.step(call.rows, call.accepted)));
      for (position_t const p : named.kept()) {
        REQUIRE(adapted.state(p).mass == named.state(p).mass);
      }
    }
  }
}

TEST_CASE("factors of nested decays multiply, and a factor of 1 changes nothing") {
  using once = decayed<h2o>;
  h2o const plain{.heavy = 4, .recent = 1};
  ledger_driver twice(decayed<once>{.of = {.of = plain, .factor = 0.5F}, .factor = 0.5F});
  ledger_driver quarter(once{.of = plain, .factor = 0.25F});
  ledger_driver whole(once{.of = plain, .factor = 1.0F});
  ledger_driver bare(plain);
  std::mt19937 random(43);
  while (bare.next() < 60) {
    random_call const call = draw_call(random, bare.kept(), bare.next());
    CHECK(whole.step(call.rows, call.accepted) == bare.step(call.rows, call.accepted));
    random_call const other = draw_call(random, quarter.kept(), quarter.next());
    CHECK(twice.step(other.rows, other.accepted) == quarter.step(other.rows, other.accepted));
  }
}

TEST_CASE("factors outside (0, 1] are refused") {
  CHECK_THROWS_WITH_AS((decayed<h2o>{.factor = 0.0F}.validate()),
                       "adore: decayed.factor = 0.000000: must lie in (0, 1]",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS((decayed<h2o>{.factor = 1.5F}.validate()),
                       "adore: decayed.factor = 1.500000: must lie in (0, 1]",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS((decayed<h2o>{.of = {.heavy = -1}}.validate()),
                       "adore: h2o.heavy = -1: must not be negative",
                       std::invalid_argument);
  decayed<h2o>{.factor = 1.0F}.validate();
}

}  // namespace adore::testing
