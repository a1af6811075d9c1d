// SPDX-License-Identifier: Apache-2.0
// Attention joined with a controller's score: alone it is decayed H2O, and a score weighs mass.
#include "adore/policies/attentive_release.hpp"

#include "adore/policies/decayed_h2o.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"
#include "support/literal_lane.hpp"
#include "support/random_rows.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

/// Sums of sixteenths and this are exact.
constexpr float small = 1.0F / 1024.0F;

float gain(float logit) {
  attentive_release::slot_state state;
  attentive_release{}.score(state, logit);
  return state.gain;
}

}  // namespace

TEST_CASE("without scores and sinks it is decayed H2O") {
  check_same_sets(
      attentive_release{.keep = 8, .recent = 2, .sinks = 0, .factor = 1.0F, .epsilon = small},
      decayed_h2o{.heavy = 6, .recent = 2, .factor = 1.0F},
      200,
      4);
}

TEST_CASE("a logit of log 2 counts a token's attention twice") {
  attentive_release const policy{
      .keep = 3, .recent = 0, .sinks = 0, .factor = 1.0F, .epsilon = small};
  for (bool const scored : {false, true}) {
    ledger_driver driver(policy);
    driver.step(
        {sixteenths({0}, {4}), sixteenths({0, 1}, {0, 6}), sixteenths({0, 1, 2}, {0, 0, 9})});
    // token 0 has 4 sixteenths, token 1 has 6: twice the first is more
    if (scored) policy.score(driver.state(0), std::log(2.0F));
    CHECK(driver.step({sixteenths({0, 1, 2, 3}, {0, 0, 0, 16})}) == position_list{scored ? 1 : 0});
  }
}

TEST_CASE("scores and attention together, against the literal model") {
  std::mt19937 random(41);
  for (int trial = 0; trial < 60; ++trial) {
    attentive_release const policy{.keep = 7,
                                   .recent = static_cast<index_t>(random() % 3),
                                   .sinks = static_cast<index_t>(random() % 3),
                                   .factor = 0.5F,
                                   .epsilon = small};
    ledger_driver driver(policy, 0, 64, 4);
    literal::lane model(literal::attentive_release(7, policy.recent, policy.sinks, 0.5F, small));
    model.open(0);
    for (int step = 0; step < 40; ++step) {
      auto const count = static_cast<index_t>(1 + random() % 4);
      auto const rows = random_rows(random, driver.kept(), driver.next(), count);
      std::vector<literal::token> tokens;
      for (index_t j = 0; j < count; ++j) {
        tokens.push_back({.score = static_cast<float>(random() % 9) - 4.0F});
      }
      // the step of the driver, with scores
      driver.books.forget_released();
      driver.books.place(0, count);
      lane_slots<attentive_release> const slots = driver.books.slots_of(0);
      for (std::size_t j = 0; j < tokens.size(); ++j) {
        policy.score(slots.state(driver.books.new_slots(0)[j]), tokens[j].score);
      }
      std::vector<float> weights(static_cast<std::size_t>(slots.slots), 0.0F);
      for (index_t i = 0; i < count; ++i) {
        for (index_t s = 0; s < slots.slots; ++s) {
          auto const found = rows[static_cast<std::size_t>(i)].find(slots.positions[s]);
          if (found == rows[static_cast<std::size_t>(i)].end()) continue;
          weights[static_cast<std::size_t>(s)] +=
              policy.query_weight(count - 1 - i) * found->second;
        }
      }
      driver.books.commit(0, count, weights.data());
      driver.books.advance(0, count);
      position_list expected;
      for (literal::release const& gone : model.step({rows.begin(), rows.end()}, count, tokens)) {
        expected.push_back(gone.position);
      }
      CHECK(driver.released() == expected);
      REQUIRE(driver.kept() == model.kept());
    }
  }
}

TEST_CASE("a gain is finite and above zero; a score that is no number sends its token away") {
  CHECK(attentive_release::slot_state{}.gain == 1.0F);
  CHECK(gain(0.0F) == 1.0F);
  CHECK(gain(2.0F) == std::exp(2.0F));
  CHECK(gain(-2.0F) == std::exp(-2.0F));
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (float const logit : {30.0F, 31.0F, 1e30F, infinity}) CHECK(gain(logit) == std::exp(30.0F));
  for (float const logit : {-30.0F, -31.0F, -1e30F, -infinity}) {
    CHECK(gain(logit) == std::exp(-30.0F));
    CHECK(gain(logit) > 0.0F);
  }
  CHECK(std::isnan(gain(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(gain(-std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("a budget is divided by the defaults") {
  for (index_t budget = 0; budget < 40; ++budget) {
    auto const policy = attentive_release::of_budget(budget);
    policy.validate();
    CHECK(policy.budget() == budget);
  }
}

}  // namespace adore::testing
