// SPDX-License-Identifier: Apache-2.0
// StreamingLLM against the table of its kept sets; positions are tested with the cache.
#include "adore/policies/streaming_llm.hpp"

#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <stdexcept>

namespace adore::testing {

TEST_CASE("StreamingLLM keeps the sinks and the newest tokens") {
  table const kept = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 4 | 0 1 3 4 5 | 0 1 4 5 6 | 0 1 5 6 7 | "
      "0 1 6 7 8 | 0 1 7 8 9 | 0 1 8 9 10");
  ledger_driver driver(streaming_llm{.sinks = 2, .window = 3});
  for (position_t n = 0; n <= 10; ++n) {
    CHECK(driver.step_blind() == (n < 5 ? position_list{} : position_list{n - 3}));
    CHECK(driver.kept() == kept[static_cast<std::size_t>(n)]);
  }
}

TEST_CASE("the chat demo's room for new tokens leaves the sinks and the newest") {
  ledger_driver driver(streaming_llm{.sinks = 2, .window = 3});
  driver.step_blind(11);
  REQUIRE(driver.kept() == position_list{0, 1, 8, 9, 10});
  driver.books.shrink(0, 3);  // what reserve(2) asks for at a budget of 5
  CHECK(driver.kept() == position_list{0, 1, 10});
  CHECK(driver.books.budget(0) == 5);
  CHECK(driver.step_blind(2).empty());
  CHECK(driver.kept() == position_list{0, 1, 10, 11, 12});
}

TEST_CASE("StreamingLLM without sinks is a window") {
  ledger_driver driver(streaming_llm{.sinks = 0, .window = 4});
  for (position_t n = 0; n < 12; ++n) driver.step_blind();
  CHECK(driver.kept() == from_to(8, 12));
}

TEST_CASE("sinks that do not fit are refused, or clamped on request") {
  CHECK_THROWS_AS(streaming_llm({.sinks = 4, .window = 0}).validate(), std::invalid_argument);
  streaming_llm const clamped = streaming_llm::clamped(4, 4);
  CHECK(clamped.sinks == 3);
  CHECK(clamped.window == 1);
  clamped.validate();
  ledger_driver driver(clamped);
  driver.step_blind(7);
  CHECK(driver.kept() == position_list{0, 1, 2, 6});
  CHECK(streaming_llm::clamped(4, 9).sinks == 4);
  CHECK(streaming_llm::clamped(4, 0).budget() == 0);
}

TEST_CASE("of a sequence shorter than the sinks everything stays") {
  ledger_driver driver(streaming_llm{.sinks = 4, .window = 1});
  driver.step_blind(3);
  CHECK(driver.kept() == position_list{0, 1, 2});
}

}  // namespace adore::testing
