// SPDX-License-Identifier: Apache-2.0
// Adaptors around adaptors against literal models: protection, blocks, ties, changing budgets.
#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policies/adaptors/newest_of_equals_first.hpp"
#include "adore/policies/adaptors/with_protection.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/strided.hpp"
#include "random_calls.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <set>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

/// H2O with more protection than its own, written down a second time.
class protected_h2o : public literal::h2o_like<protected_h2o> {
 public:
  protected_h2o(int heavy, int recent, int sinks, int newest)
      : h2o_like(heavy, recent), sinks_(sinks), newest_(std::max(recent, newest)) {}
  int protected_first() const override { return sinks_; }
  int protected_newest() const override { return newest_; }

 private:
  int sinks_, newest_;
};

/// Runs a policy and a literal lane side by side, now and then with another budget.
template <class P>
void equals_literal(P const& policy, literal::lane model, std::mt19937& random) {
  ledger_driver driver(policy);
  while (driver.next() < 40) {
    if (random() % 8 == 0) {
      index_t const budget =
          static_cast<index_t>(random() % static_cast<unsigned>(policy.budget() + 1));
      REQUIRE(sorted(driver.set_budget(budget)) == sorted(positions_of(model.set_budget(budget))));
    }
    random_call const call = draw_call(random, driver.kept(), driver.next());
    auto const released = driver.step(call.rows, call.accepted);
    REQUIRE(sorted(released) == sorted(positions_of(model.step(call.rows, call.accepted))));
    REQUIRE(driver.kept() == model.kept());
  }
}

}  // namespace

TEST_CASE("protected blocks equal the literal ones, whichever adaptor is outside") {
  std::mt19937 random(17);
  for (int run = 0; run < 30; ++run) {
    h2o const plain{.heavy = 4 + static_cast<index_t>(random() % 5),
                    .recent = static_cast<index_t>(random() % 3)};
    index_t const sinks = static_cast<index_t>(random() % 3);
    index_t const newest = static_cast<index_t>(random() % 4);
    index_t const size = 1 + static_cast<index_t>(random() % 4);
    literal::lane const model(protected_h2o(plain.heavy, plain.recent, sinks, newest),
                              {.granule = size});
    equals_literal(
        with_protection<in_blocks<h2o>>{
            .of = {.of = plain, .size = size}, .sinks = sinks, .recent = newest},
        model,
        random);
    equals_literal(
        in_blocks<with_protection<h2o>>{.of = {.of = plain, .sinks = sinks, .recent = newest},
                                        .size = size},
        model,
        random);
  }
}

TEST_CASE("blocks with either tie rule equal the literal ones, whichever adaptor is outside") {
  std::mt19937 random(23);
  for (int run = 0; run < 30; ++run) {
    h2o const plain{.heavy = static_cast<index_t>(random() % 9),
                    .recent = static_cast<index_t>(random() % 4)};
    index_t const size = 1 + static_cast<index_t>(random() % 5);
    literal::h2o const rule(plain.heavy, plain.recent);
    equals_literal(
        in_blocks<h2o>{.of = plain, .size = size}, literal::lane(rule, {.granule = size}), random);
    literal::lane const newest_first(rule, {.ties = literal::tie::evict_newest, .granule = size});
    equals_literal(in_blocks<newest_of_equals_first<h2o>>{.of = {.of = plain}, .size = size},
                   newest_first,
                   random);
    equals_literal(newest_of_equals_first<in_blocks<h2o>>{.of = {.of = plain, .size = size}},
                   newest_first,
                   random);
  }
}

TEST_CASE("blocks whose tokens must not stay leave below the budget, but only as a whole") {
  ledger_driver driver(in_blocks<strided>{.of = {.interval = 4, .window = 2}, .size = 2});
  table const kept = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 4 | 0 1 4 5 | 0 1 4 5 6 | 0 1 4 5 6 7 | "
      "0 1 4 5 6 7 8 | 0 1 4 5 8 9");
  for (position_list const& expected : kept) {
    driver.step_blind();
    CHECK(driver.kept() == expected);
  }
}

TEST_CASE("a lane in blocks falls short of its budget by less than a block") {
  std::mt19937 random(29);
  ledger_driver driver(in_blocks<h2o>{.of = {.heavy = 8, .recent = 4}, .size = 4});
  std::set<std::size_t> sizes;
  while (driver.next() < 200) {
    weight_row row;
    for (position_t const p : driver.attended()) row[p] = static_cast<float>(random() % 8) / 16.0F;
    driver.step({row});
    if (driver.next() >= 12) sizes.insert(driver.kept().size());
  }
  CHECK(sizes == std::set<std::size_t>{9, 10, 11, 12});
}

}  // namespace adore::testing
