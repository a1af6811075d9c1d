// SPDX-License-Identifier: Apache-2.0
// Who goes when a budget leaves room for protected tokens only.
#include "adore/eviction/select.hpp"

#include "adore/eviction/ledger.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/tova.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace {

/// TOVA that protects two first and three newest tokens.
struct guarded_tova : adore::tova {
  constexpr adore::index_t protected_first(adore::lane_view) const noexcept { return 2; }
  constexpr adore::index_t protected_newest(adore::lane_view) const noexcept { return 3; }
};

template <class Policy>
std::vector<adore::position_t> shrunk_to(Policy const& policy, adore::index_t budget) {
  adore::ledger<Policy> books(policy, {1, 1, 1, 7, 1}, adore::scope::kv_head, 1);
  books.open(0, 0);
  std::vector<float> const weights(7, 0.125F);
  for (int token = 0; token < 6; ++token) {
    books.place(0, 1);
    books.commit(0, 1, weights.data());
    books.advance(0, 1);
  }
  books.set_budget(0, budget);
  return books.kept(0);
}

}  // namespace

TEST_CASE("of protected tokens the newest go before the first, the oldest of each first") {
  guarded_tova policy;
  policy.size = 6;
  CHECK(shrunk_to(policy, 5) == std::vector<adore::position_t>{0, 1, 3, 4, 5});
  CHECK(shrunk_to(policy, 4) == std::vector<adore::position_t>{0, 1, 4, 5});
  CHECK(shrunk_to(policy, 2) == std::vector<adore::position_t>{0, 1});
  CHECK(shrunk_to(policy, 1) == std::vector<adore::position_t>{1});
  CHECK(shrunk_to(policy, 0).empty());
}

TEST_CASE("the queue of a window gives up its sinks last, too") {
  adore::streaming_llm const policy{.sinks = 2, .window = 4};
  CHECK(shrunk_to(policy, 3) == std::vector<adore::position_t>{0, 1, 5});
  CHECK(shrunk_to(policy, 1) == std::vector<adore::position_t>{1});
}
