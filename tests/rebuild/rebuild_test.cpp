// SPDX-License-Identifier: Apache-2.0
// Released tokens that come back: who, in which context, for how long, and what it costs.
#include "adore/kv_cache.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/stores/host_store.hpp"
#include "deep_model.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace adore;
using namespace adore::testing;

/// Ranks by the scores that it is given; protects as it is told.
struct by_score {
  index_t keep = 4, recent = 0, sinks = 0;
  static constexpr scope default_scope = scope::model;
  struct slot_state {
    float score = 0.0F;
  };
  constexpr index_t budget() const noexcept { return keep; }
  constexpr index_t protected_first(lane_view const&) const noexcept { return sinks; }
  constexpr index_t protected_newest(lane_view const&) const noexcept { return recent; }
  constexpr void score(slot_state& state, float logit) const noexcept { state.score = logit; }
  constexpr float keep_priority(slot_view, lane_view, slot_state const& state) const noexcept {
    return state.score;
  }
  constexpr void validate() const {}
};

using cache_type = kv_cache<host_store<float>, by_score>;

cache_type cache_for(deep_model const& model, by_score policy, rebuild_options const& wanted) {
  cache_options options;
  options.rebuild = wanted;
  kv_shape const shape{
      1, model.layers(), model.heads(), policy.keep + 1 + wanted.count, model.channels()};
  cache_type cache(host_store<float>(shape), policy, options);
  cache.open(0);
  return cache;
}

/// Positions of the released tokens that are in the lane now.
std::set<position_t> back_in(cache_type const& cache) {
  std::set<position_t> all;
  for (position_t const p : cache.books().positions(0)) {
    if (is_guest(p)) all.insert(guest_mark(p));
  }
  return all;
}
std::set<position_t> kept_in(cache_type const& cache) {
  auto const kept = cache.kept(0);
  return {kept.begin(), kept.end()};
}

void check_same(deep_model::row const& a, deep_model::row const& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    REQUIRE(a[i] == doctest::Approx(b[i]).epsilon(1e-5));
  }
}

/// Runs cache and literal model beside each other on drawn scores; ties are frequent.
void compare_with_literal(rebuild_options const& wanted, literal_rebuild::options literal_wanted) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    deep_model const model(seed, 2, 2, 4);
    literal_wanted.keep = static_cast<index_t>(1 + random() % 6);
    literal_wanted.recent =
        static_cast<index_t>(random() % static_cast<unsigned>(literal_wanted.keep));
    literal_wanted.count = static_cast<index_t>(1 + random() % 4);
    rebuild_options options = wanted;
    options.count = literal_wanted.count;
    literal_rebuild literal(model, literal_wanted);
    auto cache = cache_for(model, {literal_wanted.keep, literal_wanted.recent, 0}, options);
    std::vector<float> scores;
    for (index_t n = 0; n < 20; ++n) {
      CAPTURE(seed);
      CAPTURE(n);
      bool const dynamic = seed % 2 == 0;
      scores.push_back(0.0F);
      for (std::size_t i = dynamic ? 0 : scores.size() - 1; i < scores.size(); ++i) {
        scores[i] = static_cast<float>(random() % 8) / 8.0F;
      }
      auto const id = static_cast<index_t>(random() % 50);
      std::span<float const> const all(scores);
      auto const expected = literal.step(id, scores);
      auto const out = run_step(model, cache, {0, 1, {&id, 1}, dynamic ? all : all.last(1), 1});
      check_same(out, expected);
      REQUIRE(kept_in(cache) == literal.cached());
      REQUIRE(back_in(cache) == literal.back());
    }
  }
}

TEST_CASE("rebuilding in every step is what a literal model computes, under each mask") {
  for (auto const mask :
       {rebuild_mask::position_causal, rebuild_mask::row_causal, rebuild_mask::none}) {
    CAPTURE(std::string(word_of(mask)));
    rebuild_options options;
    literal_rebuild::options literal;
    options.mask = literal.mask = mask;
    compare_with_literal(options, literal);
    options.admit = literal.admit = rebuild_admission::compete;
    compare_with_literal(options, literal);
  }
}

TEST_CASE("a rebuilt row stays until it is no longer wanted if the pool is large enough") {
  for (auto const mask : {rebuild_mask::position_causal, rebuild_mask::row_causal}) {
    rebuild_options options;
    options.schedule = on_entry{100};
    literal_rebuild::options literal;
    literal.stays = true;
    options.mask = literal.mask = mask;
    compare_with_literal(options, literal);
  }
}

TEST_CASE("restored tokens have the K and V of their release") {
  rebuild_options options;
  options.schedule = restore{};
  literal_rebuild::options literal;
  literal.restores = true;
  compare_with_literal(options, literal);
  options.admit = literal.admit = rebuild_admission::compete;
  compare_with_literal(options, literal);
}

TEST_CASE("tokens rebuilt every few steps stay in between") {
  rebuild_options options;
  options.schedule = every{3};
  literal_rebuild::options literal;
  literal.period = 3;
  compare_with_literal(options, literal);
}

TEST_CASE("kept and rebuilt tokens that are all tokens give full attention, bit for bit") {
  deep_model const model(5, 3, 2, 8);
  for (index_t const keep : {1, 3, 9}) {
    rebuild_options wanted;
    wanted.count = 16 - keep;
    auto cache = cache_for(model, {keep, 0, 0}, wanted);
    kv_cache full(host_store<float>({1, 3, 2, 17, 8}), keep_all{});
    full.open(0);
    std::mt19937 random(1);
    std::vector<float> scores;
    for (index_t n = 0; n < 16; ++n) {
      scores.push_back(0.0F);
      for (float& score : scores) score = static_cast<float>(random() % 100);
      auto const id = static_cast<index_t>(random() % 50);
      auto const expected = run_step(model, full, {0, 1, {&id, 1}});
      REQUIRE(run_step(model, cache, {0, 1, {&id, 1}, scores, 1}) == expected);
    }
  }
}

// policies.md 20.7: q.k = 0 everywhere, no residual; the layer-2 value of a token is its layer-1
// output, the mean of x over what it attends.
float two_means(cache_type& cache, float const* x, index_t n, float score) {
  cache.begin_step({0, 1, {&n, 1}, {&score, 1}, 1});
  std::vector<float> values{x[n]};
  for (rebuilt_token const& back : cache.rebuilt()) values.push_back(x[back.id]);
  auto const tokens = static_cast<index_t>(values.size());
  std::vector<float> const zeros(values.size(), 0.0F);
  for (index_t layer = 0; layer < 2; ++layer) {
    std::vector<float> out(values.size());
    cache.append(layer, {zeros.data(), tokens, 1, 1}, {values.data(), tokens, 1, 1});
    cache.attend(layer, {zeros.data(), tokens, 1, 1}, {out.data(), tokens, 1, 1});
    values = out;
  }
  cache.end_step();
  return values.front();
}

TEST_CASE("the same tokens in another context: the two-layer example") {
  float const x[] = {8, 4, 0, 12, 16};
  float const scores[] = {0.9F, 0.2F, 0.8F, 0.5F, 0.0F};
  auto const last = [&](index_t keep, index_t count, rebuild_mask mask) {
    rebuild_options wanted;
    wanted.count = count;
    wanted.mask = mask;
    cache_options options;
    options.rebuild = wanted;
    cache_type cache(host_store<float>({1, 2, 1, keep + 1 + count, 1}), {keep, 0, 0}, options);
    cache.open(0);
    float out = 0.0F;
    for (index_t n = 0; n < 5; ++n) out = two_means(cache, x, n, scores[n]);
    return out;
  };
  using enum rebuild_mask;
  CHECK(last(5, 0, position_causal) == doctest::Approx(6.4));
  CHECK(last(3, 0, position_causal) == doctest::Approx(6.75));
  CHECK(last(2, 1, position_causal) == doctest::Approx(83.0 / 12.0));
  CHECK(last(2, 1, row_causal) == doctest::Approx(83.0 / 12.0));
  CHECK(last(2, 1, none) == doctest::Approx(7.5));
}

TEST_CASE("under scores that change every released token can come back") {
  // policies.md 20.8: m = 2, R = 1
  deep_model const model(2, 1, 1, 4);
  std::vector<std::vector<float>> const scores{{0.9F},
                                               {0.9F, 0.2F},
                                               {0.9F, 0.2F, 0.6F},
                                               {0.7F, 0.1F, 0.5F, 0.4F},
                                               {0.3F, 0.9F, 0.5F, 0.6F, 0.4F}};
  for (auto const admit : {rebuild_admission::never, rebuild_admission::compete}) {
    rebuild_options wanted;
    wanted.count = 1;
    wanted.admit = admit;
    auto cache = cache_for(model, {2, 0, 0}, wanted);
    std::vector<std::set<position_t>> back;
    for (index_t n = 0; n < 5; ++n) {
      cache.begin_step({0, 1, {&n, 1}, scores[static_cast<std::size_t>(n)], 1});
      back.push_back(back_in(cache));
      auto const tokens = static_cast<index_t>(1 + cache.rebuilt().size());
      std::vector<float> const data(static_cast<std::size_t>(4 * tokens), 0.5F);
      cache.append(0, {data.data(), tokens, 1, 4}, {data.data(), tokens, 1, 4});
      cache.end_step();
      if (n == 2 || n == 3) CHECK(kept_in(cache) == std::set<position_t>{0, 2});
    }
    CHECK(back[3] == std::set<position_t>{1});
    CHECK(back[4] == std::set<position_t>{1});
    CHECK(kept_in(cache) == (admit == rebuild_admission::never ? std::set<position_t>{2, 4}
                                                               : std::set<position_t>{1, 2}));
  }
}

TEST_CASE("the released tokens of H2O come back by their frozen scores") {
  // policies.md 20.5: the rows of 20.3 are raw mass on cached tokens
  cache_options options;
  options.rebuild.count = 2;
  options.reach = scope::model;
  kv_cache cache(host_store<float>({1, 1, 1, 7, 1}), h2o{2, 2}, options);
  cache.open(0);
  std::vector<weight_row> const rows{sixteenths({0}, {16}),
                                     sixteenths({0, 1}, {10, 6}),
                                     sixteenths({0, 1, 2}, {8, 3, 5}),
                                     sixteenths({0, 1, 2, 3}, {6, 2, 5, 3}),
                                     sixteenths({0, 1, 2, 3, 4}, {5, 1, 4, 2, 4}),
                                     sixteenths({0, 2, 3, 4, 5}, {3, 2, 1, 6, 4}),
                                     sixteenths({0, 2, 4, 5, 6}, {3, 1, 7, 3, 2}),
                                     sixteenths({0, 4, 5, 6, 7}, {2, 3, 6, 2, 3}),
                                     sixteenths({0, 4, 6, 7, 8}, {1, 1, 2, 9, 3}),
                                     sixteenths({0, 4, 7, 8, 9}, {1, 0, 11, 2, 2}),
                                     sixteenths({0, 7, 8, 9, 10}, {2, 2, 4, 4, 4}),
                                     sixteenths({0, 7, 9, 10, 11}, {4, 4, 2, 3, 3})};
  std::vector<std::set<position_t>> const expected{
      {}, {}, {}, {}, {}, {1}, {1, 3}, {1, 2}, {2, 5}, {2, 5}, {2, 4}, {2, 4}};
  for (index_t n = 0; n < 12; ++n) {
    CAPTURE(n);
    cache.begin_step({0, 1, {&n, 1}});
    std::set<position_t> back;
    for (rebuilt_token const& token : cache.rebuilt()) back.insert(token.position);
    CHECK(back == expected[static_cast<std::size_t>(n)]);
    position_list columns;
    std::vector<float> weights;
    for (auto const& [p, weight] : rows[static_cast<std::size_t>(n)]) {
      columns.push_back(p);
      weights.push_back(weight);
    }
    auto const tokens = static_cast<index_t>(1 + back.size());
    std::vector<float> const zeros(static_cast<std::size_t>(tokens), 0.0F);
    cache.append(0, {zeros.data(), tokens, 1, 1}, {zeros.data(), tokens, 1, 1});
    cache.observe(0, {weights.data(), 1, 1, static_cast<index_t>(columns.size())}, columns);
    cache.end_step();
  }
}

TEST_CASE("a pool that all sequences share is given to the best, and the others wait") {
  deep_model const model(3, 1, 1, 4);
  cache_options options;
  options.rebuild.count = 2;
  options.rebuild.schedule = on_entry{1};
  cache_type cache(host_store<float>({2, 1, 1, 6, 4}), {3, 0, 0}, options);
  cache.open(0);
  cache.open(1);
  index_t const ids[] = {0, 1, 2, 3, 4, 5, 6, 7};
  auto const step = [&](index_t n, std::vector<float> const& a, std::vector<float> const& b) {
    row_tokens const rows[] = {{0, 1, {ids + n, 1}, a, 1}, {1, 1, {ids + n, 1}, b, 1}};
    cache.begin_step(rows);
    std::vector<rebuilt_token> const back(cache.rebuilt().begin(), cache.rebuilt().end());
    auto const tokens = static_cast<index_t>(2 + back.size());
    std::vector<float> const data(static_cast<std::size_t>(tokens * 4), 0.5F);
    std::vector<float> out(data.size());
    cache.append(0, {data.data(), tokens, 1, 4}, {data.data(), tokens, 1, 4});
    cache.attend(0, {data.data(), tokens, 1, 4}, {out.data(), tokens, 1, 4});
    cache.end_step();
    return back;
  };
  // row 0 releases 0, row 1 releases 1
  step(0, {1}, {3});
  step(1, {2}, {1});
  step(2, {3}, {3});
  step(3, {4}, {4});
  // in step 4 both want their token back; row 1's is worth more
  auto back = step(4, {1, 2, 3, 4, 5}, {6, 5, 7, 8, 9});
  REQUIRE(back.size() == 1);
  CHECK(back[0].row == 1);
  CHECK(back[0].position == 1);
  CHECK(back[0].id == 1);
  CHECK(cache.rebuild_cost().deferred == 1);
  // then row 0's turn comes with its best, and 1 stays with row 1 without being computed
  back = step(5, {1, 9, 3, 4, 5, 6}, {6, 5, 7, 8, 9, 10});
  REQUIRE(back.size() == 1);
  CHECK(back[0].row == 0);
  CHECK(back[0].position == 1);
  CHECK(cache.rebuild_cost().computed == 2);
  CHECK(cache.rebuild_cost().entered == 2);
}

TEST_CASE("a tier with a limit loses the oldest release, which then cannot come back") {
  deep_model const model(4, 2, 1, 4);
  rebuild_options wanted;
  wanted.count = 2;
  wanted.schedule = restore{2 * 2 * 2 * 4 * sizeof(float)};  // K and V, 2 layers, 4 channels
  auto cache = cache_for(model, {2, 0, 0}, wanted);
  for (index_t n = 0; n < 6; ++n) {
    float const score = static_cast<float>(n);  // the oldest goes first
    run_step(model, cache, {0, 1, {&n, 1}, {&score, 1}, 1});
  }
  // released 0 .. 3; only 2 and 3 are left
  CHECK(cache.tier_bytes() == 2 * 2 * 2 * 4 * sizeof(float));
  index_t const n = 6;
  std::vector<float> const scores{99, 98, 2, 3, 4, 5, 6};
  cache.begin_step({0, 1, {&n, 1}, scores, 1});
  CHECK(back_in(cache) == std::set<position_t>{2, 3});
}

TEST_CASE("a closed sequence leaves nothing in the tier, whose row a fork may take") {
  deep_model const model(4, 2, 1, 4);
  cache_options options;
  options.rebuild.count = 1;
  options.rebuild.schedule = restore{};
  cache_type cache(host_store<float>({2, 2, 1, 4, 4}), {2, 0, 0}, options);
  auto const run = [&](index_t row, index_t tokens) {
    cache.open(row);
    for (index_t n = 0; n < tokens; ++n) {
      float const score = static_cast<float>(n);
      run_step(model, cache, {row, 1, {&n, 1}, {&score, 1}, 1});
    }
  };
  std::size_t const token = 2 * 2 * 4 * sizeof(float);  // K and V, 2 layers, 4 channels
  run(1, 9);
  run(0, 3);
  CHECK(cache.tier_bytes() == 8 * token);
  cache.close(1);
  CHECK(cache.tier_bytes() == token);
  cache.fork(0, 1);
  CHECK(cache.tier_bytes() == 2 * token);
}

TEST_CASE("after a dense prompt its released tokens come back") {
  deep_model const model(6, 2, 2, 4);
  for (bool const restores : {false, true}) {
    rebuild_options wanted;
    wanted.count = 8;
    if (restores) wanted.schedule = restore{};
    auto cache = cache_for(model, {4, 0, 0}, wanted);
    kv_cache full(host_store<float>({1, 2, 2, 16, 4}), keep_all{});
    full.open(0);
    std::vector<index_t> const ids{3, 1, 4, 1, 5, 9, 2, 6};
    std::vector<float> const scores{5, 3, 8, 1, 9, 2, 7, 4};
    std::vector<deep_model::row> states;
    for (index_t const id : ids) states.push_back(model.embedding(id));
    cache.begin_prompt({0, 8, ids, scores, 1});
    run_layers(model, cache, states);
    cache.end_step();
    CHECK(kept_in(cache) == std::set<position_t>{0, 2, 4, 6});
    for (index_t const& id : ids) run_step(model, full, {0, 1, {&id, 1}});
    for (index_t n = 8; n < 12; ++n) {  // all are there: the same as full attention
      float const score = 0.0F;
      auto const expected = run_step(model, full, {0, 1, {&n, 1}});
      check_same(run_step(model, cache, {0, 1, {&n, 1}, {&score, 1}, 1}), expected);
      CHECK(cache.rebuilt().empty() == restores);
    }
  }
}

TEST_CASE("a rejected draft leaves no trace among the tokens that may come back") {
  deep_model const model(7, 2, 1, 4);
  auto const run = [&](bool draft) {
    cache_options options;
    options.max_new = 3;
    options.rebuild.count = 2;
    cache_type cache(host_store<float>({1, 2, 1, 8, 4}), {3, 0, 0}, options);
    cache.open(0);
    std::mt19937 random(2);
    std::vector<deep_model::row> outs;
    for (index_t n = 0; n < 10; ++n) {
      float const score = static_cast<float>(random() % 16);
      if (draft && n % 3 == 2) {
        index_t const ids[] = {n, 40, 41};
        float const scores[] = {score, 99.0F, 99.0F};
        outs.push_back(run_step(model, cache, {0, 3, ids, scores, 1}, 1));
      } else {
        outs.push_back(run_step(model, cache, {0, 1, {&n, 1}, {&score, 1}, 1}));
      }
    }
    return outs;
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("a fork goes on with the same tokens back") {
  deep_model const model(8, 2, 1, 4);
  for (bool const restores : {false, true}) {
    cache_options options;
    options.rebuild.count = 2;
    if (restores) options.rebuild.schedule = restore{};
    cache_type cache(host_store<float>({2, 2, 1, 6, 4}), {3, 0, 0}, options);
    cache.open(0);
    for (index_t n = 0; n < 8; ++n) {
      float const score = static_cast<float>((5 * n) % 7);
      run_step(model, cache, {0, 1, {&n, 1}, {&score, 1}, 1});
    }
    cache.fork(0, 1);
    for (index_t n = 8; n < 12; ++n) {
      float const score = static_cast<float>((5 * n) % 7);
      auto const out = run_step(model, cache, {0, 1, {&n, 1}, {&score, 1}, 1});
      CHECK(run_step(model, cache, {1, 1, {&n, 1}, {&score, 1}, 1}) == out);
    }
  }
}

TEST_CASE("caches that cannot bring tokens back are refused by a sentence") {
  auto const refused = [](auto policy, cache_options options, std::string const& part) {
    options.rebuild.count = 2;
    std::string said;
    try {
      kv_cache const cache(host_store<float>({1, 2, 1, 16, 4}), policy, options);
    } catch (std::invalid_argument const& error) {
      said = error.what();
    }
    CHECK(said.find(part) != std::string::npos);
  };
  cache_options options;
  options.reach = scope::layer;
  refused(by_score{}, options, "scope model");
  options.reach = scope::model;
  options.compact = compaction::gather;
  refused(by_score{}, options, "slot_reuse");
  options.compact = compaction::slot_reuse;
  options.rebuild.schedule = every{0};
  refused(by_score{}, options, "every.steps");
  options.rebuild.schedule = on_entry{-1};
  refused(by_score{}, options, "on_entry.pool");
  options.rebuild.schedule = every_step{};
  refused(by_score{14, 0, 0}, options, "room for");

  deep_model const model(1, 1, 1, 4);
  rebuild_options wanted;
  wanted.count = 1;
  auto cache = cache_for(model, {}, wanted);
  CHECK_THROWS_AS(cache.begin_step({0, 1}), std::logic_error);  // no ids
  float const scores[] = {1.0F, 2.0F};
  index_t const id = 0;
  CHECK_THROWS_AS(cache.begin_step({0, 1, {&id, 1}, scores, 1}), std::logic_error);
}

}  // namespace
