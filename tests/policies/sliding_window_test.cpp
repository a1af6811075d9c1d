// SPDX-License-Identifier: Apache-2.0
// The window, in steps and in prompts.
#include "adore/policies/sliding_window.hpp"

#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <algorithm>

namespace adore::testing {

TEST_CASE("the window keeps the newest tokens") {
  ledger_driver window(sliding_window{.size = 3});
  for (position_t n = 0; n < 20; ++n) {
    CHECK(window.step_blind() == (n < 3 ? position_list{} : position_list{n - 3}));
    CHECK(window.kept() == from_to(std::max(0, n - 2), n + 1));
  }
}

TEST_CASE("a window of no tokens keeps nothing") {
  ledger_driver window(sliding_window{.size = 0});
  for (position_t n = 0; n < 5; ++n) {
    CHECK(window.step_blind() == position_list{n});
    CHECK(window.kept().empty());
  }
}

TEST_CASE("in a prompt the window's mask is the band that single steps would see") {
  sliding_window const band{.size = 3};
  sliding_window const full{.size = 3, .prompt = prompt_mask::full};
  for (position_t query = 0; query < 20; ++query) {
    for (position_t key = 0; key <= query; ++key) {
      CHECK(band.sees_in_prompt(query, key) == (query - key <= 3));
      CHECK(full.sees_in_prompt(query, key));
    }
  }
}

}  // namespace adore::testing
