// SPDX-License-Identifier: Apache-2.0
// Eviction of the largest keys, through the books and through a cache's own keys.
#include "adore/policies/key_norm.hpp"

#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"
#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

namespace adore::testing {

TEST_CASE("the smallest keys stay, at every step") {
  ledger_driver driver(key_norm{.size = 3});
  std::vector<float> const norms{3, 1, 2, 5, 4};
  for (std::size_t n = 0; n < norms.size(); ++n) {
    driver.step_token({.squared_norm = norms[n] * norms[n]});
    if (n >= 2) CHECK(driver.kept() == position_list{0, 1, 2});
  }
}

TEST_CASE("the kept norms do not depend on the order in which keys come") {
  std::vector<float> norms{1, 2, 3, 4, 5, 6};
  do {
    ledger_driver driver(key_norm{.size = 3});
    for (float const norm : norms) driver.step_token({.squared_norm = norm});
    std::vector<float> kept;
    for (position_t const p : driver.kept()) kept.push_back(driver.state(p).squared_norm);
    std::sort(kept.begin(), kept.end());
    REQUIRE(kept == std::vector<float>{1, 2, 3});
  } while (std::next_permutation(norms.begin(), norms.end()));
}

TEST_CASE("recent tokens stay whatever their keys") {
  ledger_driver driver(key_norm{.size = 3, .recent = 1});
  for (float const norm : {3.0F, 1.0F, 2.0F, 5.0F, 4.0F}) {
    driver.step_token({.squared_norm = norm});
  }
  CHECK(driver.kept() == position_list{1, 2, 4});
}

TEST_CASE("a lane of two heads adds up their squares, in steps and in prompts") {
  // norms per token and head; the sums of squares are 25, 8, 10, 9
  std::vector<float> const keys{3, 4, 2, 2, 3, 1, 0, 3};
  for (bool const prompt : {false, true}) {
    kv_cache cache(
        host_store<float>({1, 1, 2, 4, 1}), key_norm{.size = 2}, {.reach = scope::layer});
    cache.open(0);
    if (prompt) {
      cache.begin_prompt({0, 4});
      token_view<float const> const k(keys.data(), 4, 2, 1);
      std::vector<float> out(8);
      cache.append(0, k, k);
      cache.attend(0, k, token_view<float>(out.data(), 4, 2, 1));
      cache.end_step();
    } else {
      for (index_t j = 0; j < 4; ++j) {
        cache.begin_step();
        token_view<float const> const k(keys.data() + 2 * j, 1, 2, 1);
        cache.append(0, k, k);
        cache.end_step();
      }
    }
    CHECK(cache.kept(0) == position_list{1, 3});
  }
}

}  // namespace adore::testing
