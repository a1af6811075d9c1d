// SPDX-License-Identifier: Apache-2.0
// Sentinel tokens: the mask, the repeating positions, the release of a closed span.
#include "adore/policies/sentinel.hpp"

#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t opening = 101;
constexpr index_t closing = 102;
std::vector<index_t> const text{1, 2, opening, 3, 4, closing, 5};  // a b <CL> c d <CR> e

sentinel policy(index_t tail = 0) {
  return {.open = opening, .close = closing, .tail = tail};
}

}  // namespace

TEST_CASE("each token sees its own span, the closing tokens and what is in no span") {
  table const sees = lists("0 | 0 1 | 2 | 0 1 3 | 0 1 3 4 | 2 3 4 5 | 0 1 5 6");
  sentinel::lane_state lane;
  std::vector<sentinel::slot_state> states(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) policy().hear(states[i], lane, {}, text[i]);
  for (position_t query = 0; query < 7; ++query) {
    position_list seen;
    for (position_t key = 0; key <= query; ++key) {
      if (policy().sees({query, query},
                        states[static_cast<std::size_t>(query)],
                        {key, key},
                        states[static_cast<std::size_t>(key)],
                        {0, 0, 1})) {
        seen.push_back(key);
      }
    }
    CHECK(seen == sees[static_cast<std::size_t>(query)]);
  }
}

TEST_CASE("sentinels repeat their predecessor's rotary position") {
  auto const positions = [](std::vector<index_t> const& ids) {
    sentinel::lane_state lane;
    position_list result;
    for (index_t const id : ids) {
      sentinel::slot_state state;
      policy().hear(state, lane, {}, id);
      result.push_back(policy().rotary_position(state));
    }
    return result;
  };
  CHECK(positions(text) == position_list{0, 1, 1, 2, 3, 3, 4});
  CHECK(positions({opening, 1, 2, closing, 3}) == position_list{0, 0, 1, 1, 2});
}

TEST_CASE("a closed span and its opening token leave, its closing token stays") {
  ledger_driver driver(policy());
  for (std::size_t i = 0; i < text.size(); ++i) {
    CHECK(driver.step_token({.id = text[i]}) ==
          (i == 5 ? position_list{2, 3, 4} : position_list{}));
    if (i == 5) CHECK(driver.kept() == position_list{0, 1, 5});
  }
  CHECK(driver.kept() == position_list{0, 1, 5, 6});
}

TEST_CASE("with a tail each token of a closed span stays until it leaves the tail") {
  ledger_driver driver(policy(2));
  std::vector<position_list> const gone{{}, {}, {}, {}, {}, {2, 3}, {4}, {}};
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(sorted(driver.step_token({.id = i < text.size() ? text[i] : 6})) == gone[i]);
  }
}

TEST_CASE("an opening token inside a span belongs to it, a closing one outside is a word") {
  ledger_driver driver(policy());
  for (index_t const id : {closing, opening, opening, 1, closing, closing}) {
    driver.step_token({.id = id});
  }
  CHECK(driver.kept() == position_list{0, 4, 5});
}

TEST_CASE("the schedule puts a span around every so many words") {
  sentinel_schedule const every_three{.span = 3};
  std::string marks;
  for (index_t i = 0; i < 7; ++i) {
    if (every_three.opens_before(i)) marks += '(';
    marks += 'x';
    if (every_three.closes_after(i)) marks += ')';
  }
  CHECK(marks == "(xxx)(xxx)(x");
}

}  // namespace adore::testing
