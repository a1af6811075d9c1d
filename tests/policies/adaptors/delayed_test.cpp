// SPDX-License-Identifier: Apache-2.0
// Newcomers that wait before they compete.
#include "adore/policies/adaptors/delayed.hpp"

#include "adore/policies/h2o.hpp"
#include "adore/policies/sliding_window.hpp"
#include "random_calls.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

/// H2O whose newcomers wait, and what they receive meanwhile is forgotten.
class forgetful_h2o : public literal::h2o_like<forgetful_h2o> {
 public:
  forgetful_h2o(int heavy, int recent, int wait)
      : h2o_like(heavy, recent), protected_(std::max(recent, wait)), wait_(wait) {}
  int protected_newest() const override { return protected_; }
  void observe(int position, float sum, int queries, literal::facts const& now) override {
    if (position <= now.newest - wait_) h2o_like::observe(position, sum, queries, now);
  }

 private:
  int protected_, wait_;
};

}  // namespace

TEST_CASE("a newcomer is no candidate for its first queries") {
  ledger_driver driver(delayed<h2o>{.of = {.heavy = 3, .recent = 0}, .queries = 2});
  driver.step({{{0, 1.0F}}});
  driver.step({{{0, 0.5F}, {1, 0.5F}}});
  driver.step({{{0, 1.0F}}});
  // masses 2.5, 0.5, 0, 0: tokens 2 and 3 would be lower but wait
  CHECK(driver.step({{{0, 0.0F}}}) == position_list{1});
  CHECK(driver.step({{{0, 0.0F}}}) == position_list{2});
  CHECK(driver.kept() == position_list{0, 3, 4});
}

TEST_CASE("where the wait does not count, only what comes after it does") {
  delayed<h2o> const policy{.of = {.heavy = 4, .recent = 0}, .queries = 2, .counts = false};
  ledger_driver driver(policy);
  driver.step({{{0, 1.0F}}});
  driver.step({{{0, 0.75F}, {1, 0.25F}}});
  CHECK(driver.state(0).mass == 0.0F);
  driver.step({{{0, 0.25F}, {1, 0.25F}, {2, 0.5F}}});
  CHECK(driver.state(0).mass == 0.25F);
  CHECK(driver.state(1).mass == 0.0F);
  driver.step({{{0, 0.125F}, {1, 0.5F}, {2, 0.25F}, {3, 0.125F}}});
  CHECK(driver.state(0).mass == 0.375F);
  CHECK(driver.state(1).mass == 0.5F);
  CHECK(driver.state(2).mass == 0.0F);
  // with the attention of its first queries token 0 would have 2.125 and token 1 would go
  CHECK(driver.step({{{1, 0.5F}, {2, 0.5F}}}) == position_list{0});
}

TEST_CASE("in a call of several queries the last one decides for all") {
  ledger_driver driver(
      delayed<h2o>{.of = {.heavy = 8, .recent = 0}, .queries = 2, .counts = false});
  weight_row const row{{0, 0.25F}};
  weight_row const next{{0, 0.25F}, {1, 0.5F}};
  driver.step({row, next, {{0, 0.125F}, {1, 0.25F}, {2, 0.5F}}});
  CHECK(driver.state(0).mass == 0.625F);  // all three, its own among them
  CHECK(driver.state(1).mass == 0.0F);
  CHECK(driver.state(2).mass == 0.0F);
}

TEST_CASE("H2O that waits and counts is H2O with so many recent tokens") {
  std::mt19937 random(31);
  for (int run = 0; run < 20; ++run) {
    index_t const wait = static_cast<index_t>(random() % 4);
    index_t const own = static_cast<index_t>(random() % 4);
    index_t const budget = 4 + static_cast<index_t>(random() % 4);
    index_t const recent = std::max(wait, own);
    ledger_driver waits(
        delayed<h2o>{.of = {.heavy = budget - own, .recent = own}, .queries = wait});
    ledger_driver plain(h2o{.heavy = budget - recent, .recent = recent});
    while (plain.next() < 40) {
      random_call const call = draw_call(random, plain.kept(), plain.next());
      REQUIRE(waits.step(call.rows, call.accepted) == plain.step(call.rows, call.accepted));
    }
  }
}

TEST_CASE("H2O that forgets the wait equals the literal one") {
  std::mt19937 random(37);
  int differs = 0;
  for (int run = 0; run < 40; ++run) {
    index_t const wait = static_cast<index_t>(random() % 5);
    index_t const recent = static_cast<index_t>(random() % 3);
    h2o const inner{.heavy = 3 + static_cast<index_t>(random() % 5), .recent = recent};
    ledger_driver forgets(delayed<h2o>{.of = inner, .queries = wait, .counts = false});
    ledger_driver remembers(delayed<h2o>{.of = inner, .queries = wait});
    literal::lane model(forgetful_h2o(inner.heavy, recent, wait));
    while (forgets.next() < 40) {
      random_call const call = draw_call(random, forgets.kept(), forgets.next());
      auto const released = forgets.step(call.rows, call.accepted);
      REQUIRE(released == positions_of(model.step(call.rows, call.accepted)));
      remembers.step(call.rows, call.accepted);
      differs += remembers.kept() == forgets.kept() ? 0 : 1;
    }
  }
  CHECK(differs > 0);
}

TEST_CASE("a policy that ranks once can be delayed too") {
  ledger_driver driver(delayed<sliding_window>{.of = {.size = 3}, .queries = 2});
  for (position_t n = 0; n < 8; ++n) {
    driver.step_blind();
    CHECK(driver.kept() == from_to(std::max(0, n - 2), n + 1));
  }
}

TEST_CASE("a negative delay is refused") {
  CHECK_THROWS_WITH_AS((delayed<h2o>{.queries = -1}.validate()),
                       "adore: delayed.queries = -1: must not be negative",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS((delayed<h2o>{.of = {.recent = -1}}.validate()),
                       "adore: h2o.recent = -1: must not be negative",
                       std::invalid_argument);
  delayed<h2o>{.queries = 0}.validate();
}

}  // namespace adore::testing
