// SPDX-License-Identifier: Apache-2.0
// Ada-KV's head budgets: the worked example, the literal ones, and whole prompts.
#include "adore/policies/adaptors/ada_kv.hpp"

#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/snapkv.hpp"
#include "support/cache_driver.hpp"
#include "support/literal_budgets.hpp"

#include <doctest/doctest.h>

#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

using lists_of_scores = std::vector<std::vector<float>>;
lists_of_scores const example{{8, 1, 1, 1, 1, 0}, {4, 4, 3, 3, 2, 1}};

/// What heads that would each keep `mean` tokens get.
std::vector<index_t> divided(lists_of_scores const& scores,
                             index_t mean,
                             float floor,
                             ada_reading reading) {
  std::vector<float> priorities;
  for (auto const& head : scores) priorities.insert(priorities.end(), head.begin(), head.end());
  std::vector<index_t> budgets(scores.size(), mean);
  ada_kv<h2o> const policy{.of = {.heavy = mean, .recent = 0}, .floor = floor, .reading = reading};
  policy.divide_budget(priorities.data(),
                       static_cast<index_t>(scores.size()),
                       static_cast<index_t>(scores.front().size()),
                       budgets.data());
  return budgets;
}

/// A prompt of six tokens whose votes, by the last two queries, are the example's scores / 16.
cache_driver<snapkv>::head_rows example_rows() {
  cache_driver<snapkv>::head_rows rows;
  for (int i = 0; i < 6; ++i) rows.push_back({{{0, 1.0F}}, {{0, 1.0F}}});
  rows.push_back({sixteenths({0, 1, 6}, {8, 1, 7}), sixteenths({0, 1, 6}, {4, 4, 8})});
  rows.push_back(
      {sixteenths({2, 3, 4, 7}, {1, 1, 1, 13}), sixteenths({2, 3, 4, 5, 7}, {3, 3, 2, 1, 7})});
  return rows;
}

snapkv snap(after_prompt then = after_prompt::none) {
  return {.size = 5, .window = 2, .pool = vote_pooling::none, .then = then};
}

}  // namespace

TEST_CASE("two heads share a budget by the best of their scores together") {
  CHECK(divided(example, 3, 0.2F, ada_reading::exact) == std::vector<index_t>{1, 5});
  CHECK(divided(example, 3, 0.2F, ada_reading::code) == std::vector<index_t>{1, 4});
  CHECK(divided(example, 3, 0.2F, ada_reading::paper) == std::vector<index_t>{3, 3});
  CHECK(divided(example, 3, 0.0F, ada_reading::exact) == std::vector<index_t>{1, 5});
  CHECK(divided(example, 3, 1.0F, ada_reading::exact) == std::vector<index_t>{3, 3});
}

TEST_CASE("budgets agree with the literal ones, ties and all") {
  std::mt19937 random(23);
  for (int i = 0; i < 400; ++i) {
    lists_of_scores scores(1 + random() % 5, std::vector<float>(6 + random() % 20));
    for (auto& head : scores) {
      for (float& score : head) score = static_cast<float>(random() % (i % 2 == 0 ? 4 : 1000));
    }
    auto const mean = 1 + static_cast<index_t>(random() % (scores.front().size() - 1));
    int const tenths = static_cast<int>(random() % 11);
    float const floor = static_cast<float>(tenths) / 10.0F;
    literal::fraction const share{tenths, 10};
    auto const exact = divided(scores, mean, floor, ada_reading::exact);
    CHECK(exact == literal::ada_budgets(scores, mean, share));
    CHECK(std::accumulate(exact.begin(), exact.end(), 0) ==
          mean * static_cast<index_t>(scores.size()));
    CHECK(divided(scores, mean, floor, ada_reading::code) ==
          literal::ada_budgets_code(scores, mean, share));
    CHECK(divided(scores, mean, floor, ada_reading::paper) ==
          literal::ada_budgets_paper(scores, mean, share));
  }
}

TEST_CASE("a prompt's heads keep their shares, the window on top; then nothing leaves") {
  cache_driver driver(ada_kv<snapkv>{.of = snap()}, 2, 2);
  driver.prompt(example_rows());
  CHECK(driver.kept(0) == position_list{0, 6, 7});
  CHECK(driver.kept(1) == position_list{0, 1, 2, 3, 4, 6, 7});
  for (int i = 0; i < 3; ++i) CHECK(driver.step_row({}).empty());
  CHECK(driver.kept(0) == position_list{0, 6, 7, 8, 9, 10});
}

TEST_CASE("shares hold after the prompt where the policy holds a budget") {
  cache_driver driver(ada_kv<snapkv>{.of = snap(after_prompt::window)}, 2, 2);
  driver.prompt(example_rows());
  driver.step_row({});
  CHECK(driver.kept(0) == position_list{6, 7, 8});
  CHECK(driver.kept(1) == position_list{1, 2, 3, 4, 6, 7, 8});
}

TEST_CASE("a share for which a lane lacks slots ends the prompt and closes the row") {
  // room for 5 of 48 slots; the second head would keep 7
  cache_driver driver(ada_kv<snapkv>{.of = snap(after_prompt::window)}, 2, 2, {.max_new = 43});
  CHECK_THROWS_AS(driver.prompt(example_rows()), std::length_error);
  CHECK_FALSE(driver.cache.books().is_open(0));
  driver.cache.open(0);
  CHECK(driver.step_row({}).empty());
  CHECK(driver.kept(1) == position_list{0});
}

TEST_CASE("short prompts and unbounded policies divide nothing") {
  cache_driver driver(ada_kv<snapkv>{.of = snap()}, 2, 2);
  auto rows = example_rows();
  rows.erase(rows.begin(), rows.begin() + 3);
  for (auto& query : rows) query = {{{0, 1.0F}}, {{0, 1.0F}}};
  CHECK(driver.prompt(rows).empty());
  CHECK(driver.kept(0) == from_to(0, 5));
  cache_driver all(ada_kv<keep_all>{}, 2, 2);
  CHECK(all.prompt(example_rows()).empty());
  CHECK(all.step_row({}).empty());
}

TEST_CASE("the largest share is what one head gets when all the best tokens are its own") {
  for (ada_reading const reading : {ada_reading::exact, ada_reading::code, ada_reading::paper}) {
    ada_kv<h2o> const policy{.of = {.heavy = 10, .recent = 3}, .reading = reading};
    lists_of_scores scores(4, std::vector<float>(50, 0.0F));
    for (float& score : scores[2]) score = 1.0F;
    CHECK(policy.largest_budget(4, 13) == 3 + divided(scores, 10, 0.2F, reading)[2]);
  }
  CHECK(ada_kv<h2o>{.of = {.heavy = 10, .recent = 3}}.largest_budget(4, 13) == 3 + 34);
}

TEST_CASE("a floor outside [0, 1] is refused") {
  CHECK_THROWS_AS(ada_kv<h2o>{.floor = -0.1F}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(ada_kv<h2o>{.floor = 1.1F}.validate(), std::invalid_argument);
  CHECK_THROWS_AS((ada_kv<h2o>{.of = {.heavy = -1}}.validate()), std::invalid_argument);
}

}  // namespace adore::testing
