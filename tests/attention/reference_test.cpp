// SPDX-License-Identifier: Apache-2.0
// Attention against the textbook formula in double precision: kept tokens, masks, strongest keys,
// in steps, chunks and prompts.
#include "adore/attention/query_attention.hpp"
#include "support/every_policy.hpp"
#include "support/literal_sentinel.hpp"
#include "support/literal_sets.hpp"
#include "support/small_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t layers = 2, heads = 4, kv_heads = 2, channels = 24, group = heads / kv_heads;
constexpr std::uint64_t seed = 31;

policy_case const& case_named(std::string const& beginning) {
  for (policy_case const& which : every_policy_case()) {
    if (which.name.starts_with(beginning)) return which;
  }
  FAIL("no case " << beginning);
  return every_policy_case().front();
}

/// May query head `head` at `query` attend `key`?
using mask = std::function<bool(index_t layer, index_t head, position_t query, position_t key)>;
mask const everything = [](index_t, index_t, position_t, position_t) { return true; };

double logit(
    small_model const& engine, index_t layer, index_t head, position_t query, position_t key) {
  auto const q = engine.tensor({{seed, query}}, layer, 0, heads);
  auto const k = engine.tensor({{seed, key}}, layer, 1, kv_heads);
  double sum = 0.0;
  for (index_t c = 0; c < channels; ++c) {
    sum += double{q[static_cast<std::size_t>(head * channels + c)]} *
           double{k[static_cast<std::size_t>(head / group * channels + c)]};
  }
  return sum / std::sqrt(double{channels});
}

/// Output of one query head over these keys.
std::vector<double> attention(small_model const& engine,
                              index_t layer,
                              index_t head,
                              position_t query,
                              position_list const& keys) {
  std::vector<double> out(channels, 0.0);
  double sum = 0.0;
  for (position_t const key : keys) sum += std::exp(logit(engine, layer, head, query, key));
  for (position_t const key : keys) {
    auto const v = engine.tensor({{seed, key}}, layer, 2, kv_heads);
    double const p = std::exp(logit(engine, layer, head, query, key)) / sum;
    for (index_t c = 0; c < channels; ++c) {
      out[static_cast<std::size_t>(c)] +=
          p * double{v[static_cast<std::size_t>(head / group * channels + c)]};
    }
  }
  return out;
}

/// Runs single steps, chunks of 3 or a dense prompt and compares every output.
void compare(policy_case const& which, mask const& sees, index_t count, bool dense) {
  INFO(which.name << ", " << (dense ? "prompt of " : "steps of ") << count);
  auto const cache = which.make({1, layers, kv_heads, 40, channels},
                                {.positions = position_scheme::original, .max_new = 3});
  small_model engine(layers, heads, kv_heads, channels);
  cache->open(0, seed);
  double worst = 0.0;
  for (int call = 0; call < (dense ? 1 : 8); ++call) {
    position_t const first = cache->next(0);
    std::vector<position_list> kept;
    for (index_t lane = 0; lane < cache->lanes_per_row(); ++lane) kept.push_back(cache->kept(lane));
    engine.seen.clear();
    if (dense) {
      engine.prompt(*cache, {0, seed, count});
    } else {
      engine.step(*cache, {{0, seed, count}});
    }
    for (position_t query = first; query < first + count; ++query) {
      auto const& out = engine.seen.at({seed, query});
      for (index_t layer = 0; layer < layers; ++layer) {
        for (index_t head = 0; head < heads; ++head) {
          position_list keys;
          for (position_t const p :
               kept[static_cast<std::size_t>(cache->lane(0, layer, head / group))]) {
            if (sees(layer, head, query, p)) keys.push_back(p);
          }
          for (position_t p = first; p <= query; ++p) {
            if (sees(layer, head, query, p)) keys.push_back(p);
          }
          auto const expected = attention(engine, layer, head, query, keys);
          for (index_t c = 0; c < channels; ++c) {
            auto const at = static_cast<std::size_t>((layer * heads + head) * channels + c);
            worst =
                std::max(worst, std::abs(double{out[at]} - expected[static_cast<std::size_t>(c)]));
          }
        }
      }
    }
  }
  CHECK(worst < 1e-5);
  CHECK(worst > 0.0);  // a reference that is the code under test would agree to the last bit
}

}  // namespace

TEST_CASE("attention over what is kept equals the formula") {
  for (char const* const name : {"keep_all", "h2o(", "streaming_llm(", "random_reservoir("}) {
    compare(case_named(name), everything, 1, false);
    compare(case_named(name), everything, 3, false);
    compare(case_named(name), everything, 9, true);
  }
}

TEST_CASE("a window's dense prompt attends the band") {
  compare(
      case_named("sliding_window(size=4"),
      [](index_t, index_t, position_t query, position_t key) { return query - key <= 4; },
      12,
      true);
}

TEST_CASE("the Sparse Transformer's heads attend their patterns") {
  mask const sees = [](index_t, index_t head, position_t query, position_t key) {
    return head < heads / 2 ? query - key < 3 : (query - key) % 3 == 0;
  };
  compare(case_named("sparse_transformer"), sees, 1, false);
  compare(case_named("sparse_transformer"), sees, 3, false);
  compare(case_named("sparse_transformer"), sees, 14, true);
}

TEST_CASE("sentinels see their spans") {
  std::vector<literal::role> roles;
  for (int p = 0; p < 40; ++p) {
    roles.push_back(p % 7 == 2   ? literal::role::open
                    : p % 7 == 5 ? literal::role::close
                                 : literal::role::ordinary);
  }
  mask const sees = [&](index_t, index_t, position_t query, position_t key) {
    return literal::sentinel_sees(roles, query, key);
  };
  compare(case_named("sentinel"), sees, 1, false);
  compare(case_named("sentinel"), sees, 3, false);
  compare(case_named("sentinel"), sees, 20, true);
}

TEST_CASE("dynamic top-K is dense attention on the strongest keys") {
  small_model const engine(layers, heads, kv_heads, channels);
  mask const sees = [&](index_t layer, index_t head, position_t query, position_t key) {
    std::vector<float> logits;
    for (position_t p = 0; p <= query; ++p) {
      logits.push_back(static_cast<float>(logit(engine, layer, head, query, p)));
    }
    auto const strongest = literal::top_k_of_head(logits, 3);
    return std::find(strongest.begin(), strongest.end(), key) != strongest.end();
  };
  compare(case_named("dynamic_top_k"), sees, 1, false);
}

}  // namespace adore::testing
