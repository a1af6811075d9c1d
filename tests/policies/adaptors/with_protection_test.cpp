// SPDX-License-Identifier: Apache-2.0
// Added sinks and recent tokens.
#include "adore/policies/adaptors/with_protection.hpp"

#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/tova.hpp"
#include "support/random_rows.hpp"

#include <doctest/doctest.h>

#include <stdexcept>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

template <eviction_policy P>
position_list victims(P policy, std::vector<position_list> const& rows) {
  ledger_driver<P> driver(policy);
  position_list all;
  for (position_list const& row : rows) {
    for (position_t const p : driver.step({sixteenths(driver.attended(), row)})) all.push_back(p);
  }
  return all;
}

}  // namespace

TEST_CASE("protected sinks and recent tokens outlive weaker attention") {
  std::vector<position_list> const weak_first{{16}, {8, 8}, {5, 5, 6}, {1, 5, 4, 6}};
  CHECK(victims(tova{.size = 3}, weak_first) == position_list{0});
  using protects = with_protection<tova>;
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 1}, weak_first) == position_list{2});
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 2}, weak_first) == position_list{2});
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 0}, weak_first) == position_list{0});

  std::vector<position_list> const weak_last{{16}, {8, 8}, {5, 5, 6}, {7, 5, 3, 1}};
  CHECK(victims(tova{.size = 3}, weak_last) == position_list{3});
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 0, .recent = 1}, weak_last) ==
        position_list{2});
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 0, .recent = 2}, weak_last) ==
        position_list{1});
  CHECK(victims(protects{.of = {.size = 3}, .sinks = 1, .recent = 2}, weak_last) ==
        position_list{1});
}

TEST_CASE("the larger protection counts, the policy's own or the added one") {
  lane_view const lane{
      .newest = 9, .occupied = 10, .budget = 8, .layer = 0, .kv_head = 0, .seed = 0};
  with_protection<h2o> const few{.of = {.heavy = 5, .recent = 3}, .sinks = 0, .recent = 1};
  with_protection<h2o> const more{.of = {.heavy = 5, .recent = 3}, .sinks = 0, .recent = 4};
  CHECK(few.protected_newest(lane) == 3);
  CHECK(more.protected_newest(lane) == 4);
  with_protection<streaming_llm> const sinks{.of = {.sinks = 2, .window = 6}, .sinks = 1};
  CHECK(sinks.protected_first(lane) == 2);
  CHECK(more.protected_first(lane) == 0);
}

TEST_CASE("a window with sinks is StreamingLLM") {
  check_same_sets(with_protection<sliding_window>{.of = sliding_window::of_budget(9), .sinks = 3},
                  streaming_llm{.sinks = 3, .window = 6},
                  60,
                  4);
}

TEST_CASE("when only protected tokens are left the newest lose before the first") {
  ledger_driver driver(with_protection<tova>{.of = {.size = 4}, .sinks = 1, .recent = 2});
  for (int i = 0; i < 4; ++i) driver.step_blind();
  CHECK(driver.set_budget(0) == position_list{1, 2, 3, 0});
}

TEST_CASE("protection around blocks: a block with a protected token stays") {
  using policy = with_protection<in_blocks<h2o>>;
  policy const sinks{.of = {.of = {.heavy = 4, .recent = 0}, .size = 2}, .sinks = 2, .recent = 1};
  ledger_driver driver(sinks);
  for (int i = 0; i < 4; ++i) driver.step_blind();
  // {0, 1} is weaker than {2, 3} but holds the sinks; {4} is not complete
  CHECK(sorted(driver.step({{{2, 0.125F}, {3, 0.25F}, {4, 0.5F}}})) == position_list{2, 3});
  CHECK(driver.step_blind() == position_list{});
  CHECK(sorted(driver.step_blind()) == position_list{4, 5});
  CHECK(driver.kept() == position_list{0, 1, 6});

  policy two_recent = sinks;
  two_recent.recent = 2;
  ledger_driver other(two_recent);
  for (int i = 0; i < 4; ++i) other.step_blind();
  // 3 is protected, so no whole block can go: the one unprotected token does
  CHECK(other.step({{{2, 0.125F}, {3, 0.25F}, {4, 0.5F}}}) == position_list{2});
  CHECK(other.step_blind() == position_list{3});  // what is left of its block
  CHECK(other.step_blind() == position_list{4});  // 5 is protected
  CHECK(other.kept() == position_list{0, 1, 5, 6});
}

TEST_CASE("protection that exceeds the budget or is negative is refused") {
  using protects = with_protection<tova>;
  CHECK_NOTHROW(protects{.of = {.size = 4}, .sinks = 2, .recent = 2}.validate());
  CHECK_THROWS_AS((protects{.of = {.size = 4}, .sinks = 3, .recent = 2}.validate()),
                  std::invalid_argument);
  CHECK_THROWS_AS((protects{.of = {.size = 4}, .sinks = -1}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((protects{.of = {.size = 4}, .recent = -1}.validate()), std::invalid_argument);
  CHECK_THROWS_AS((protects{.of = {.size = -4}, .sinks = 0}.validate()), std::invalid_argument);
}

}  // namespace adore::testing
