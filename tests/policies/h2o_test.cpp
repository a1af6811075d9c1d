// SPDX-License-Identifier: Apache-2.0
// H2O against worked tables, and its published relatives against one another.
#include "adore/policies/h2o.hpp"

#include "adore/policies/decayed_h2o.hpp"
#include "adore/policies/h2o_algorithm_1.hpp"
#include "adore/policies/h2o_mask_simulation.hpp"
#include "adore/policies/h2o_per_age.hpp"
#include "support/cache_driver.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_attention_policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

/// The rows of the table, in units of 1/16, in ascending order of what is attended.
table const rows = lists(
    "16 | 10 6 | 8 3 5 | 6 2 5 3 | 5 1 4 2 4 | 3 2 1 6 4 | 3 1 7 3 2 | 2 3 6 2 3 | "
    "1 1 2 9 3 | 1 0 11 2 2 | 2 2 4 4 4 | 4 4 2 3 3");
table const kept_sets = lists(
    "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 4 5 | 0 4 5 6 | 0 4 6 7 | 0 4 7 8 | "
    "0 7 8 9 | 0 7 9 10 | 0 7 10 11");

/// H2O that releases the newest among equals.
struct h2o_newest_first : h2o {
  static constexpr bool newest_first = true;
};
static_assert(releases_newest_of_equals<h2o_newest_first>);

/// A weight that all variants of H2O agree on, before it is normalised over what each attends.
float cross_check_weight(position_t n, position_t j) {
  if (j == 8 && n >= 8 && n <= 10) return 500.0F;
  return static_cast<float>(1 + (7 * n + 5 * j + 3 * n * j) % 13);
}
weight_row cross_check_row(position_t n, position_list const& attended) {
  float sum = 0.0F;
  for (position_t const j : attended) sum += cross_check_weight(n, j);
  weight_row row;
  for (position_t const j : attended) row[j] = cross_check_weight(n, j) / sum;
  return row;
}
cache_driver<h2o>::head_rows cross_check_prompt() {
  cache_driver<h2o>::head_rows prompt;
  for (position_t n = 0; n < 8; ++n) prompt.push_back({cross_check_row(n, from_to(0, n + 1))});
  return prompt;
}

/// What the next query will see beside itself.
template <class P>
position_list seen_next(ledger_driver<P>& driver) {
  position_list seen;
  slot_view const query{driver.next(), driver.next()};
  for (position_t const p : driver.kept()) {
    if (driver.books.policy().sees(query, {}, {p, p}, driver.state(p), {0, 0, 1})) {
      seen.push_back(p);
    }
  }
  return seen;
}

}  // namespace

TEST_CASE("H2O keeps the recent tokens and the heavy hitters") {
  table const mass = lists(
      "16 | 26 6 | 34 9 5 | 40 11 10 3 | 45 12 14 5 4 | 48 16 6 10 4 | 51 17 17 7 2 | "
      "53 20 13 4 3 | 54 21 6 12 3 | 55 21 23 5 2 | 57 25 9 6 4 | 61 29 8 7 3");
  position_list const evicted{1, 3, 2, 5, 6, 4, 8, 9};
  std::vector<float> const heavy_minimum{14, 16, 17, 20, 21, 23, 25, 29};
  ledger_driver driver(h2o{.heavy = 2, .recent = 2});
  for (std::size_t n = 0; n < rows.size(); ++n) {
    position_list const attended = driver.attended();
    auto const released = driver.step({sixteenths(attended, rows[n])});
    CHECK(driver.kept() == kept_sets[n]);
    CHECK(released == (n < 4 ? position_list{} : position_list{evicted[n - 4]}));
    for (std::size_t i = 0; i < attended.size(); ++i) {
      if (!released.empty() && attended[i] == released.front()) continue;
      CHECK(driver.state(attended[i]).mass * 16.0F == static_cast<float>(mass[n][i]));
    }
    if (n < 4) continue;
    auto const kept = driver.kept();
    float const lowest = std::min(driver.state(kept[0]).mass, driver.state(kept[1]).mass);
    CHECK(lowest * 16.0F == heavy_minimum[n - 4]);
  }
}

TEST_CASE("a cache that observes keeps what the books alone keep") {
  cache_driver driver(h2o{.heavy = 2, .recent = 2});
  for (std::size_t n = 0; n < rows.size(); ++n) {
    driver.step_row(sixteenths(driver.attended(), rows[n]));
    CHECK(driver.kept() == kept_sets[n]);
  }
}

TEST_CASE("where equals release the newest, the tie goes the other way") {
  ledger_driver<h2o_newest_first> driver({h2o{.heavy = 2, .recent = 2}});
  for (std::size_t n = 0; n < 6; ++n) driver.step({sixteenths(driver.attended(), rows[n])});
  CHECK(driver.step({sixteenths(driver.attended(), rows[6])}) == position_list{4});
  CHECK(driver.kept() == position_list{0, 2, 5, 6});
}

TEST_CASE("H2O after a dense prompt equals the authors' code that really drops") {
  table const attended = lists(
      "0 1 2 5 6 7 8 | 0 1 2 6 7 8 9 | 0 1 2 7 8 9 10 | 0 1 2 8 9 10 11 | "
      "0 2 8 9 10 11 12 | 0 2 8 10 11 12 13");
  cache_driver driver(h2o{.heavy = 3, .recent = 3});
  CHECK(sorted(driver.prompt(cross_check_prompt())) == position_list{3, 4});
  for (position_t n = 8; n <= 13; ++n) {
    CHECK(driver.attended() == attended[static_cast<std::size_t>(n - 8)]);
    driver.step_row(cross_check_row(n, driver.attended()));
  }
}

TEST_CASE("the mask simulation hides what just left the recent tokens for one step") {
  table const attended = lists(
      "0 1 2 6 7 8 | 0 1 2 7 8 9 | 0 1 2 8 9 10 | 0 1 2 9 10 11 | 0 2 8 10 11 12 | "
      "0 2 8 11 12 13");
  ledger_driver driver(h2o_mask_simulation{.heavy = 3, .recent = 3});
  std::vector<weight_row> prompt;
  for (auto const& query : cross_check_prompt()) prompt.push_back(query.front());
  driver.step(prompt);
  for (position_t n = 8; n <= 13; ++n) {
    auto const seen = with(seen_next(driver), n);
    CHECK(seen == attended[static_cast<std::size_t>(n - 8)]);
    driver.step({cross_check_row(n, seen)});
    CHECK(driver.kept() == from_to(0, n + 1));
  }
}

TEST_CASE("the mask simulation equals the literal one, drafts and chunks included") {
  std::mt19937 random(7);
  for (int run = 0; run < 60; ++run) {
    index_t const heavy = static_cast<index_t>(random() % 4);
    index_t const recent = 1 + static_cast<index_t>(random() % 3);
    ledger_driver driver(h2o_mask_simulation{.heavy = heavy, .recent = recent});
    literal::h2o_mask_simulation model(heavy, recent);
    while (driver.next() < 30) {
      index_t const count = 1 + static_cast<index_t>(random() % 3);
      index_t const accepted = static_cast<index_t>(random() % static_cast<unsigned>(count + 1));
      auto const seen = seen_next(driver);
      std::vector<weight_row> step;
      for (index_t i = 0; i < count; ++i) {
        weight_row row;
        for (position_t const p : seen) row[p] = static_cast<float>(random() % 8) / 16.0F;
        for (index_t j = 0; j <= i; ++j) {
          row[driver.next() + j] = static_cast<float>(random() % 8) / 16.0F;
        }
        step.push_back(row);
      }
      driver.step(step, accepted);
      if (accepted > 0) model.step(step, accepted);
      REQUIRE(seen_next(driver) == model.attended());
      for (position_t p = 0; p < model.resident(); ++p) {
        REQUIRE(driver.state(p).mass == model.score(p));
      }
    }
  }
}

TEST_CASE("Algorithm 1 as printed freezes at the first tokens") {
  ledger_driver driver(h2o_algorithm_1{.size = 6});
  for (position_t n = 0; n < 20; ++n) {
    CHECK(driver.step_blind() == (n < 6 ? position_list{} : position_list{n}));
  }
  CHECK(driver.kept() == from_to(0, 6));
}

TEST_CASE("without heavy hitters H2O is a window, without recent tokens the newest competes") {
  ledger_driver window(h2o{.heavy = 0, .recent = 3});
  ledger_driver bare(h2o{.heavy = 2, .recent = 0});
  for (position_t n = 0; n < 10; ++n) {
    weight_row row;
    for (position_t const p : window.attended()) row[p] = p % 3 == 0 ? 0.5F : 0.0625F;
    window.step({row});
    CHECK(window.kept() == from_to(std::max(0, n - 2), n + 1));
    weight_row own{{0, 0.5F}, {1, 0.5F}};
    own[n] += n < 2 ? 0.0F : 0.25F;
    bare.step({own});
  }
  CHECK(bare.kept() == position_list{0, 1});
}

TEST_CASE("decay forgets by the number of queries, and a call's own queries by their age in it") {
  ledger_driver driver(decayed_h2o{.heavy = 8, .recent = 0, .factor = 0.5F});
  driver.step({{{0, 1.0F}}});
  driver.step({{{0, 0.75F}, {1, 0.25F}}, {{0, 0.5F}, {1, 0.25F}, {2, 0.25F}}});
  CHECK(driver.state(0).mass == 1.0F * 0.25F + 0.5F * 0.75F + 0.5F);
  CHECK(driver.state(1).mass == 0.5F * 0.25F + 0.25F);
  CHECK(driver.state(2).mass == 0.25F);
  ledger_driver plain(h2o{.heavy = 2, .recent = 1});
  ledger_driver kept_whole(decayed_h2o{.heavy = 2, .recent = 1, .factor = 1.0F});
  std::mt19937 random(3);
  for (int n = 0; n < 40; ++n) {
    weight_row row;
    for (position_t const p : plain.attended()) row[p] = static_cast<float>(random() % 16) / 16.0F;
    plain.step({row});
    kept_whole.step({row});
    CHECK(plain.kept() == kept_whole.kept());
  }
}

TEST_CASE("per age, the newest token can have the least") {
  ledger_driver driver(h2o_per_age{.heavy = 2, .recent = 0});
  driver.step({{{0, 1.0F}}});
  driver.step({{{0, 0.5F}, {1, 0.5F}}});
  // mass 1.75, 0.625, 0.125 over ages 3, 2, 1
  CHECK(driver.step({{{0, 0.25F}, {1, 0.125F}, {2, 0.125F}}}) == position_list{2});
}

TEST_CASE("per age, a token's own query counts as its first") {
  ledger_driver driver(h2o_per_age{.heavy = 1, .recent = 0});
  driver.step({{{0, 1.0F}}});
  // mass 1.25, 0.75 over ages 2, 1; over ages 3, 2 the older would win
  CHECK(driver.step({{{0, 0.25F}, {1, 0.75F}}}) == position_list{0});
}

TEST_CASE("heads that keep their own sets do not know of one another") {
  cache_driver driver(h2o{.heavy = 1, .recent = 1}, 4, 2);
  cache_driver swapped(h2o{.heavy = 1, .recent = 1}, 4, 2);
  std::mt19937 random(11);
  for (position_t n = 0; n < 12; ++n) {
    std::vector<weight_row> heads(4);
    for (std::size_t head = 0; head < 4; ++head) {
      for (position_t const p : driver.attended(static_cast<index_t>(head / 2))) {
        heads[head][p] = static_cast<float>(random() % 16) / 16.0F;
      }
    }
    driver.step({heads});
    // the other order of KV heads, and inside each group
    swapped.step({{heads[3], heads[2], heads[1], heads[0]}});
    CHECK(driver.kept(0) == swapped.kept(1));
    CHECK(driver.kept(1) == swapped.kept(0));
  }
}

}  // namespace adore::testing
