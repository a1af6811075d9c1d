// SPDX-License-Identifier: Apache-2.0
// Rings and heaps against the path that looks at every slot, and Theorem S against both.
#include "adore/eviction/victim_queue.hpp"

#include "adore/order_key.hpp"
#include "adore/policies/h2o_algorithm_1.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/random.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/strided.hpp"
#include "support/ledger_driver.hpp"
#include "support/literal_lane.hpp"
#include "support/literal_static_policies.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

/// The same decisions, but nobody is told that they are fixed: every step looks at every slot.
template <class P>
struct scanning : P {
  static constexpr bool fixed_priority = false;
};

/// Ranks by the key's norm; among equals the newest goes, which rings cannot do.
struct newest_large_key : key_norm {
  static constexpr bool newest_first = true;
};

template <class P>
void same_both_ways(P policy, std::uint32_t seed) {
  static_assert(ranks_once<P> && !ranks_once<scanning<P>>);
  std::mt19937 random(seed);
  auto const below = [&](index_t end) {
    return static_cast<index_t>(random() % static_cast<unsigned>(end));
  };
  // 40 slots hold what an unbounded policy keeps of 36 tokens
  ledger_driver queued(policy, seed, 40, 4);
  ledger_driver<scanning<P>> scanned({policy}, seed, 40, 4);
  while (queued.next() < 36) {
    if (below(8) == 0) {
      index_t const budget = below(12);
      CHECK(sorted(queued.set_budget(budget)) == sorted(scanned.set_budget(budget)));
    }
    index_t const count = 1 + below(4);
    index_t const accepted = below(count + 1);
    std::vector<token_facts> tokens;
    for (index_t j = 0; j < count; ++j) {
      tokens.push_back({.squared_norm = static_cast<float>(below(6))});
    }
    std::vector<weight_row> const rows(static_cast<std::size_t>(count));
    auto const left = queued.step(rows, accepted, tokens);
    CHECK(sorted(left) == sorted(scanned.step(rows, accepted, tokens)));
    REQUIRE(queued.kept() == scanned.kept());
  }
}

}  // namespace

TEST_CASE("rings and heaps release what a look at every slot releases") {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    same_both_ways(keep_all{}, seed);
    same_both_ways(sliding_window{.size = 5}, seed);
    same_both_ways(streaming_llm{.sinks = 3, .window = 4}, seed);
    same_both_ways(strided{.interval = 3, .window = 2}, seed);
    same_both_ways(
        strided{.interval = 3, .window = 2, .bound = stride_bound::drop_oldest_grid, .limit = 6},
        seed);
    same_both_ways(h2o_algorithm_1{.size = 5}, seed);
    same_both_ways(key_norm{.size = 6}, seed);
    same_both_ways(key_norm{.size = 6, .recent = 3}, seed);
    same_both_ways(newest_large_key{key_norm{.size = 6, .recent = 1}}, seed);
    same_both_ways(random_reservoir{.size = 5}, seed);
  }
}

TEST_CASE("a NaN goes first when one must go, what is never kept goes in any case, both ways") {
  float const infinity = std::numeric_limits<float>::infinity();  // of a key: priority keep_never
  float const nan = std::numeric_limits<float>::quiet_NaN();
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    key_norm const policy{.size = 6, .recent = static_cast<index_t>(seed % 3)};
    ledger_driver queued(policy, seed, 40, 4);
    ledger_driver<scanning<key_norm>> scanned({policy}, seed, 40, 4);
    literal::lane model(literal::key_norm(policy.size, policy.recent));
    while (queued.next() < 36) {
      std::size_t const count = 1 + random() % 4;
      std::vector<token_facts> tokens;
      std::vector<literal::token> literal_tokens;
      for (std::size_t j = 0; j < count; ++j) {
        float const norms[] = {nan, infinity, 1.0F, 2.0F, 3.0F};
        tokens.push_back({.squared_norm = norms[random() % 5]});
        literal_tokens.push_back({.key_norm = tokens.back().squared_norm});
      }
      std::vector<weight_row> const rows(count);
      queued.step(rows, std::nullopt, tokens);
      scanned.step(rows, std::nullopt, tokens);
      model.step(rows, static_cast<int>(count), literal_tokens);
      REQUIRE(queued.kept() == scanned.kept());
      REQUIRE(queued.kept() == model.kept());
      if (random() % 4 == 0) {
        auto const budget = static_cast<index_t>(random() % 8);
        queued.set_budget(budget);
        scanned.set_budget(budget);
        model.set_budget(budget);
        REQUIRE(queued.kept() == scanned.kept());
        REQUIRE(queued.kept() == model.kept());
      }
    }
  }
}

TEST_CASE("the kept set is the newest and the best of the rest, however tokens arrive") {
  std::mt19937 random(17);
  for (int run = 0; run < 40; ++run) {
    index_t const recent = static_cast<index_t>(random() % 4);
    key_norm const policy{.size = 6, .recent = recent};
    std::vector<float> norms(30);
    for (float& norm : norms) norm = static_cast<float>(random() % 9);
    ledger_driver driver(policy);
    std::size_t n = 0;
    while (n < norms.size()) {
      std::size_t const count = std::min<std::size_t>(1 + random() % 7, norms.size() - n);
      std::vector<token_facts> tokens;
      for (std::size_t j = 0; j < count; ++j) tokens.push_back({.squared_norm = norms[n + j]});
      driver.step(std::vector<weight_row>(count), std::nullopt, tokens);
      n += count;
      auto rest = from_to(0, std::max(0, driver.next() - recent));
      auto const key = [&](position_t p) {
        return order_key(-norms[static_cast<std::size_t>(p)], p);
      };
      std::sort(
          rest.begin(), rest.end(), [&](position_t a, position_t b) { return key(a) > key(b); });
      rest.resize(std::min(rest.size(), static_cast<std::size_t>(6 - recent)));
      for (position_t p = std::max(0, driver.next() - recent); p < driver.next(); ++p) {
        rest.push_back(p);
      }
      CHECK(driver.kept() == sorted(rest));
    }
  }
}

TEST_CASE("kept sets merge: the best of two texts are the best of the best of each") {
  std::mt19937 random(23);
  auto const best = [](std::vector<std::pair<float, position_t>> tokens) {
    std::sort(tokens.begin(), tokens.end(), [](auto const& a, auto const& b) {
      return order_key(a.first, a.second) > order_key(b.first, b.second);
    });
    tokens.resize(std::min<std::size_t>(tokens.size(), 5));
    return tokens;
  };
  for (int run = 0; run < 100; ++run) {
    std::vector<std::pair<float, position_t>> x, y;
    for (position_t p = 0; p < 20; ++p) {
      (random() % 2 == 0 ? x : y).emplace_back(static_cast<float>(random() % 6), p);
    }
    auto both = x;
    both.insert(both.end(), y.begin(), y.end());
    auto merged = best(x);
    auto const best_of_y = best(y);
    merged.insert(merged.end(), best_of_y.begin(), best_of_y.end());
    CHECK(best(merged) == best(both));
  }
}

}  // namespace adore::testing
