// SPDX-License-Identifier: Apache-2.0
// What every policy promises, whatever it prefers. Outputs are compared bit for bit.
#include "adore/kv_cache.hpp"
#include "support/every_policy.hpp"
#include "support/small_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t layers = 2, heads = 4, kv_heads = 2, channels = 8, longest = 48, max_new = 4;

small_model model() {
  return {layers, heads, kv_heads, channels};
}

/// The policy's own scope; lanes as small as its budget allows.
std::unique_ptr<tested_cache> make(policy_case const& which,
                                   index_t rows,
                                   compaction compact = compaction::slot_reuse) {
  index_t const kept = std::min(which.budget, longest);
  return which.make(
      {rows, layers, kv_heads, kept + max_new, channels},
      {.positions = position_scheme::original, .max_new = max_new, .compact = compact});
}

template <class Action>
void for_every_case(Action&& action) {
  for (policy_case const& which : every_policy_case()) {
    INFO(which.name);
    action(which);
  }
}

/// All lanes of a row.
std::vector<position_list> kept_sets(tested_cache const& cache, index_t row = 0) {
  std::vector<position_list> result;
  for (index_t i = 0; i < cache.lanes_per_row(); ++i) {
    result.push_back(cache.kept(row * cache.lanes_per_row() + i));
  }
  return result;
}

}  // namespace

TEST_CASE("a step leaves the budget, the protected tokens, and each token kept or released once") {
  for_every_case([](policy_case const& which) {
    auto const cache = make(which, 1);
    auto engine = model();
    std::mt19937 random(5);
    cache->open(0, 3);
    std::vector<std::set<position_t>> released(static_cast<std::size_t>(cache->lanes_per_row()));
    while (cache->next(0) < longest - max_new) {
      auto const count = 1 + static_cast<index_t>(random() % max_new);
      engine.step(*cache, {{0, 3, count}});
      for (released_token const& token : cache->released()) {
        bool const first_time =
            released[static_cast<std::size_t>(token.lane)].insert(token.position).second;
        CHECK(first_time);
      }
      position_t const next = cache->next(0);
      for (index_t lane = 0; lane < cache->lanes_per_row(); ++lane) {
        position_list const kept = cache->kept(lane);
        auto const& gone = released[static_cast<std::size_t>(lane)];
        CHECK(static_cast<index_t>(kept.size()) <= cache->budget(lane));
        CHECK(kept.size() + gone.size() == static_cast<std::size_t>(next));
        for (position_t const p : kept) CHECK_FALSE(gone.contains(p));
        for (position_t p = 0; p < next; ++p) {
          bool const is_protected = p < which.sinks || p >= next - which.recent;
          if (is_protected) CHECK(std::binary_search(kept.begin(), kept.end(), p));
        }
      }
    }
  });
}

TEST_CASE("without pressure the output is full attention's") {
  policy_case const& full = every_policy_case().front();
  REQUIRE(full.name == "keep_all");
  for_every_case([&](policy_case const& which) {
    if (!which.full_without_pressure) return;
    // a query attends what is kept and itself: budget + 1 tokens
    index_t const tokens = std::min(std::min(which.budget, longest - 1) + 1, 24);
    for (bool const dense : {false, true}) {
      // of a dense prompt nothing may be released either
      index_t const size = dense ? std::min(tokens, which.prompt_budget) : tokens;
      if (size == 0) continue;
      auto const cache = make(which, 1);
      auto const reference = make(full, 1);
      auto engine = model();
      auto expected = model();
      cache->open(0, 9);
      reference->open(0, 9);
      if (dense) {
        engine.prompt(*cache, {0, 9, size});
        expected.prompt(*reference, {0, 9, size});
      } else {
        for (index_t n = 0; n < size; ++n) {
          engine.step(*cache, {{0, 9}});
          expected.step(*reference, {{0, 9}});
        }
      }
      CHECK(engine.seen == expected.seen);
    }
  });
}

TEST_CASE("the same input gives the same result") {
  for_every_case([](policy_case const& which) {
    auto first = model();
    auto second = model();
    std::vector<position_list> kept;
    for (small_model* const engine : {&first, &second}) {
      auto const cache = make(which, 1);
      cache->open(0, 21);
      engine->prompt(*cache, {0, 21, 4});
      for (int n = 0; n < 20; ++n) engine->step(*cache, {{0, 21, 1 + n % 2}});
      if (engine == &first) kept = kept_sets(*cache);
      CHECK(kept_sets(*cache) == kept);
    }
    CHECK(first.seen == second.seen);
  });
}

TEST_CASE("a row does not depend on the rows around it") {
  for_every_case([](policy_case const& which) {
    auto batch = model();
    auto const cache = make(which, 3);
    // lengths differ, rows are left out of steps, one closes and another sequence takes its place
    cache->open(1, 11);
    for (int n = 0; n < 5; ++n) batch.step(*cache, {{1, 11}});
    cache->open(2, 12);
    batch.prompt(*cache, {2, 12, 4});
    for (int n = 0; n < 6; ++n) batch.step(*cache, {{2, 12, 2}, {1, 11}});
    cache->close(1);
    cache->open(0, 13);
    cache->open(1, 14);
    for (int n = 0; n < 7; ++n) batch.step(*cache, {{0, 13, 3}, {1, 14}, {2, 12}});

    auto alone = model();
    auto const run_alone = [&](std::uint64_t seed, auto&& steps) {
      auto const own = make(which, 1);
      own->open(0, seed);
      steps(*own);
      return kept_sets(*own);
    };
    run_alone(11, [&](tested_cache& own) {
      for (int n = 0; n < 11; ++n) alone.step(own, {{0, 11}});
    });
    auto const kept_12 = run_alone(12, [&](tested_cache& own) {
      alone.prompt(own, {0, 12, 4});
      for (int n = 0; n < 6; ++n) alone.step(own, {{0, 12, 2}});
      for (int n = 0; n < 7; ++n) alone.step(own, {{0, 12}});
    });
    auto const kept_13 = run_alone(13, [&](tested_cache& own) {
      for (int n = 0; n < 7; ++n) alone.step(own, {{0, 13, 3}});
    });
    auto const kept_14 = run_alone(14, [&](tested_cache& own) {
      for (int n = 0; n < 7; ++n) alone.step(own, {{0, 14}});
    });
    CHECK(kept_sets(*cache, 0) == kept_13);
    CHECK(kept_sets(*cache, 1) == kept_14);
    CHECK(kept_sets(*cache, 2) == kept_12);
    CHECK(batch.seen == alone.seen);
  });
}

TEST_CASE("priorities that never change: streamed, chunked and one-shot keep the same set") {
  int compared = 0;
  for_every_case([&](policy_case const& which) {
    if (!which.ranks_once) return;
    ++compared;
    for (index_t const tokens : {1, 3, 7, 20, 33}) {
      auto engine = model();
      auto const streamed = make(which, 1);
      auto const chunked = make(which, 1);
      auto const dense = make(which, 1);
      for (auto const* cache : {&streamed, &chunked, &dense}) (*cache)->open(0, 4);
      for (index_t n = 0; n < tokens; ++n) engine.step(*streamed, {{0, 4}});
      while (chunked->next(0) < tokens) {
        engine.step(*chunked, {{0, 4, std::min(max_new, tokens - chunked->next(0))}});
      }
      engine.prompt(*dense, {0, 4, tokens});
      CHECK(kept_sets(*chunked) == kept_sets(*streamed));
      CHECK(kept_sets(*dense) == kept_sets(*streamed));
    }
  });
  CHECK(compared >= 10);
}

TEST_CASE("where tokens lie does not matter: slots reused, gathered or multiplied together") {
  for_every_case([](policy_case const& which) {
    auto reused = model();
    auto gathered = model();
    auto multiplied = model();
    std::vector<position_list> kept;
    for (auto [engine, kind] : {std::pair{&reused, compaction::slot_reuse},
                                std::pair{&gathered, compaction::gather},
                                std::pair{&multiplied, compaction::matmul}}) {
      auto const cache = make(which, 2, kind);
      cache->open(1, 8);
      for (int n = 0; n < 24; ++n) engine->step(*cache, {{1, 8, 1 + n % 2}});
      if (kind == compaction::slot_reuse) kept = kept_sets(*cache, 1);
      CHECK(kept_sets(*cache, 1) == kept);
    }
    CHECK(reused.seen == gathered.seen);
    CHECK(reused.seen == multiplied.seen);
  });
}

TEST_CASE("a fork and a restored snapshot go on as their origin does") {
  for_every_case([](policy_case const& which) {
    auto engine = model();
    auto const cache = make(which, 2);
    cache->open(0, 6);
    for (int n = 0; n < 9; ++n) engine.step(*cache, {{0, 6}});
    cache->fork(0, 1);
    for (int n = 0; n < 9; ++n) {
      // the two differ in nothing, so they are told apart by calls of their own
      small_model one = model();
      small_model two = model();
      one.step(*cache, {{0, 6}});
      two.step(*cache, {{1, 6}});
      CHECK(one.seen == two.seen);
      CHECK(kept_sets(*cache, 0) == kept_sets(*cache, 1));
    }
    row_snapshot const saved = cache->snapshot(0);
    cache->close(1);
    cache->restore(1, saved);
    CHECK(kept_sets(*cache, 1) == kept_sets(*cache, 0));
    CHECK(cache->next(1) == cache->next(0));
  });
}

TEST_CASE("a draft that is rejected never was") {
  for_every_case([](policy_case const& which) {
    for (index_t accepted = 0; accepted <= 3; ++accepted) {
      auto const drafting = make(which, 1);
      auto const plain = make(which, 1);
      auto engine = model();
      drafting->open(0, 2);
      plain->open(0, 2);
      for (int n = 0; n < 12; ++n) {
        // the draft: three tokens, whose first ones come again where they are not accepted
        std::vector<float> tensor(static_cast<std::size_t>(3 * heads * channels), 0.25F);
        std::vector<float> out(tensor.size());
        auto const begin = [&](tested_cache& cache, index_t count) {
          std::vector<index_t> const ids{opening_id, closing_id, 7};
          row_tokens const row{
              0, count, std::span<index_t const>(ids).first(static_cast<std::size_t>(count))};
          cache.begin_step({&row, 1});
          for (index_t layer = 0; layer < layers; ++layer) {
            token_view<float const> const own_k(tensor.data(), count, kv_heads, channels);
            token_view<float const> const own_q(tensor.data(), count, heads, channels);
            cache.append(layer, own_k, own_k);
            cache.attend(layer, own_q, token_view<float>(out.data(), count, heads, channels));
          }
        };
        begin(*drafting, 3);
        drafting->end_step(std::span<index_t const>(&accepted, 1));
        if (accepted > 0) {
          begin(*plain, accepted);
          plain->end_step();
        }
        CHECK(kept_sets(*drafting) == kept_sets(*plain));
        engine.step(*drafting, {{0, 2}});
        auto const outputs = engine.seen;
        engine.seen.clear();
        engine.step(*plain, {{0, 2}});
        CHECK(engine.seen == outputs);
        engine.seen.clear();
        CHECK(kept_sets(*drafting) == kept_sets(*plain));
        if (drafting->next(0) + 4 > longest) break;
      }
    }
  });
}

}  // namespace adore::testing
