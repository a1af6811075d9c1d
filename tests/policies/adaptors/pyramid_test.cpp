// SPDX-License-Identifier: Apache-2.0
// PyramidKV's layer budgets against the literal ones, and in a cache.
#include "adore/policies/adaptors/pyramid.hpp"

#include "adore/kv_cache.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/snapkv.hpp"
#include "adore/stores/host_store.hpp"
#include "support/literal_budgets.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

std::vector<index_t> budgets(index_t mean,
                             index_t layers,
                             index_t beta,
                             pyramid_rounding rounding = pyramid_rounding::exact) {
  std::vector<index_t> all;
  for (index_t l = 0; l < layers; ++l) {
    all.push_back(pyramid_budget(mean, layers, l, beta, rounding));
  }
  return all;
}

/// Kept tokens per layer after a prompt of random numbers and after two more steps.
template <class P>
table kept_counts(P policy, index_t layers, index_t slots, index_t prompt) {
  constexpr index_t channels = 4;
  kv_cache cache(host_store<float>({1, layers, 1, slots, channels}), policy);
  cache.open(0);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  auto const forward = [&](index_t tokens) {
    for (index_t layer = 0; layer < layers; ++layer) {
      std::vector<float> data(static_cast<std::size_t>(tokens * channels));
      for (float& x : data) x = normal(random);
      std::vector<float> out(data.size());
      token_view<float const> const view(data.data(), tokens, 1, channels);
      cache.append(layer, view, view);
      cache.attend(layer, view, token_view<float>(out.data(), tokens, 1, channels));
    }
    cache.end_step();
  };
  table result;
  auto const count = [&] {
    result.emplace_back();
    for (index_t layer = 0; layer < layers; ++layer) {
      result.back().push_back(static_cast<index_t>(cache.kept(0, layer).size()));
    }
  };
  cache.begin_prompt({0, prompt});
  forward(prompt);
  count();
  for (int i = 0; i < 2; ++i) {
    cache.begin_step();
    forward(1);
  }
  count();
  return result;
}

}  // namespace

TEST_CASE("exact budgets fall linearly, keep the sum and give every layer a token") {
  for (index_t const layers : {1, 2, 3, 7, 32}) {
    for (index_t const beta : {1, 2, 5, 20}) {
      for (index_t mean = beta; mean < 150; mean += 7) {
        auto const all = budgets(mean, layers, beta);
        CHECK(all == literal::pyramid_exact(mean, layers, beta));
        CHECK(std::accumulate(all.begin(), all.end(), 0) == mean * layers);
        CHECK(std::is_sorted(all.rbegin(), all.rend()));
        CHECK(all.back() >= 1);
      }
    }
  }
}

TEST_CASE("the authors' rounding: capacity 128, window 8, 32 layers") {
  auto const all = budgets(120, 32, 20, pyramid_rounding::repo);
  CHECK(all.front() == 234);
  CHECK(all[1] == 227);
  CHECK(all.back() == 17);
  CHECK(std::accumulate(all.begin(), all.end(), 0) == 4016);
  CHECK(budgets(120, 1, 20, pyramid_rounding::repo) == std::vector<index_t>{120});
}

TEST_CASE("the authors' rounding at prompts of every length") {
  for (index_t const layers : {1, 2, 9, 32}) {
    for (index_t const beta : {1, 4, 20}) {
      for (index_t tokens = 1; tokens < 400; ++tokens) {
        auto const wanted = literal::pyramid_repo(128, 8, layers, tokens, beta);
        for (index_t l = 0; l < layers; ++l) {
          REQUIRE(pyramid_budget_of_prompt(120, 8, layers, l, tokens, beta) ==
                  wanted[static_cast<std::size_t>(l)]);
        }
      }
    }
  }
}

TEST_CASE("lanes get their layer's budget, recent tokens on top") {
  pyramid<h2o> const policy{.of = {.heavy = 8, .recent = 2}, .beta = 4};
  CHECK(kept_counts(policy, 3, 17, 30) == table{{16, 10, 4}, {16, 10, 4}});
  // a store for the mean alone is too small for the lowest layer
  CHECK_THROWS_AS(kept_counts(policy, 3, 16, 30), std::invalid_argument);
}

TEST_CASE("PyramidKV: SnapKV's selection from the prompt, layer by layer; then nothing leaves") {
  pyramid<snapkv> const policy{.of = {.size = 10, .window = 2}, .beta = 4};
  CHECK(kept_counts(policy, 3, 40, 30) == table{{16, 10, 4}, {18, 12, 6}});
  pyramid<snapkv> held = policy;
  held.of.then = after_prompt::window;
  CHECK(kept_counts(held, 3, 17, 30) == table{{16, 10, 4}, {16, 10, 4}});
  pyramid<snapkv> repo = policy;
  repo.rounding = pyramid_rounding::repo;
  CHECK(kept_counts(repo, 3, 40, 30) == table{{16, 10, 4}, {18, 12, 6}});
  CHECK(kept_counts(repo, 3, 40, 9) == table{{9, 9, 9}, {11, 11, 11}});
  CHECK(kept_counts(repo, 3, 40, 15) == table{{10, 10, 10}, {12, 12, 12}});
}

TEST_CASE("a pyramid needs layers of their own and a budget that its top survives") {
  static_assert(pyramid<h2o>::default_scope == scope::kv_head);
  static_assert(pyramid<keep_all>::default_scope != scope::model);
  CHECK_NOTHROW(pyramid<h2o>{.of = {.heavy = 20, .recent = 9}}.validate());
  CHECK_THROWS_AS((pyramid<h2o>{.of = {.heavy = 19, .recent = 9}}.validate()),
                  std::invalid_argument);
  CHECK_THROWS_AS(pyramid<h2o>{.beta = 0}.validate(), std::invalid_argument);
  CHECK_THROWS_AS(pyramid<keep_all>{}.validate(), std::invalid_argument);
  CHECK_NOTHROW(pyramid<snapkv>{}.validate());
}

}  // namespace adore::testing
