// SPDX-License-Identifier: Apache-2.0
// The fast pass over a lane against a plain loop, for lanes of all sizes, ties and odd numbers.
#include "adore/eviction/rank.hpp"

#include "adore/order_key.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

struct given_priority {
  static constexpr scope default_scope = scope::kv_head;
  struct slot_state {
    float value = 0.0F;
  };
  constexpr index_t budget() const noexcept { return 1; }
  constexpr float keep_priority(slot_view, lane_view, slot_state const& state) const noexcept {
    return state.value;
  }
  constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t queries) const noexcept {
    state.value += weight * static_cast<float>(queries);
  }
  constexpr void validate() const {}
};
struct given_priority_newest_first : given_priority {
  static constexpr bool newest_first = true;
};

template <class P>
void equals_a_plain_loop(std::uint32_t seed) {
  std::mt19937 random(seed);
  auto const below = [&](int end) {
    return static_cast<int>(random() % static_cast<unsigned>(end));
  };
  float const odd[] = {-0.0F,
                       0.0F,
                       keep_never,
                       std::numeric_limits<float>::infinity(),
                       std::numeric_limits<float>::quiet_NaN(),
                       -std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::denorm_min(),
                       -1.0F};
  int const sizes[] = {1, 2, 63, 64, 65, 128, 130, 1023, 1024, 1025, 2100};
  index_t const slots = sizes[seed % std::size(sizes)];
  int const kind = below(4);  // few levels, many levels, with negative ones, with odd numbers
  std::vector<position_t> positions;
  for (position_t p = 0; p < slots; ++p) positions.push_back(p + 5);
  std::shuffle(positions.begin(), positions.end(), random);
  for (position_t& p : positions) {
    if (below(5) == 0) p = no_position;
  }
  std::vector<typename P::slot_state> states(static_cast<std::size_t>(slots));
  std::vector<float> weights(static_cast<std::size_t>(slots));
  for (std::size_t s = 0; s < states.size(); ++s) {
    states[s].value = kind == 0   ? static_cast<float>(below(3))
                      : kind == 1 ? static_cast<float>(below(100000)) / 64.0F
                      : kind == 2 ? static_cast<float>(below(64) - 32) / 4.0F
                                  : (below(3) == 0 ? odd[below(8)] : static_cast<float>(below(4)));
    weights[s] = static_cast<float>(below(4)) / 16.0F;
  }
  no_state none;
  lane_slots<P> const lane{slots, positions.data(), positions.data(), states.data(), &none};
  candidate_range const range{5 + below(slots / 4 + 1), slots + 4 - below(slots / 4 + 2)};
  bool const observes = below(2) == 0;
  index_t const queries = 1 + below(3);
  lane_view const view{};
  auto expected_states = states;
  lowest_slot expected;
  std::uint64_t lowest_key = ~std::uint64_t{0};
  for (index_t s = 0; s < slots; ++s) {
    auto& state = expected_states[static_cast<std::size_t>(s)];
    if (observes) {
      P{}.observe(state, {}, view, weights[static_cast<std::size_t>(s)], queries);
    }
    position_t const p = positions[static_cast<std::size_t>(s)];
    if (p == no_position || p < range.first || p > range.last) continue;
    std::uint64_t const key = order_key(state.value, p, releases_newest_of_equals<P>);
    if (key >= lowest_key) continue;
    lowest_key = key;
    expected = {s, ordered_priority(state.value)};
  }
  lowest_slot const found = observes
                                ? observe_and_rank(P{}, lane, view, range, weights.data(), queries)
                                : rank(P{}, lane, view, range);
  INFO("seed " << seed << ", " << slots << " slots, kind " << kind);
  CHECK(found.slot == expected.slot);
  CHECK(found.rank == expected.rank);
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (positions[s] == no_position) continue;
    bool const same = __builtin_bit_cast(std::uint32_t, states[s].value) ==
                      __builtin_bit_cast(std::uint32_t, expected_states[s].value);
    REQUIRE(same);
  }
}

}  // namespace

TEST_CASE("the pass over a lane finds the lowest candidate, the oldest among equals") {
  for (std::uint32_t seed = 0; seed < 2000; ++seed) {
    equals_a_plain_loop<given_priority>(seed);
    equals_a_plain_loop<given_priority_newest_first>(seed);
  }
}

TEST_CASE("the order: NaN before -infinity, -0 equals +0, older before newer") {
  float const infinity = std::numeric_limits<float>::infinity();
  float const nan = std::numeric_limits<float>::quiet_NaN();
  float const ascending[] = {-infinity, -2.0F, -1e-40F, 0.0F, 1e-40F, 1.0F, infinity};
  for (std::size_t i = 0; i + 1 < std::size(ascending); ++i) {
    CHECK(order_key(ascending[i], 9) < order_key(ascending[i + 1], 0));
  }
  CHECK(order_key(nan, 9) < order_key(-infinity, 0));
  CHECK(order_key(-nan, 9) < order_key(-infinity, 0));
  CHECK(order_key(-0.0F, 3) < order_key(0.0F, 7));
  CHECK(order_key(0.0F, 3) < order_key(-0.0F, 7));
  CHECK(order_key(0.0F, 7, true) < order_key(-0.0F, 3, true));
}

}  // namespace adore::testing
