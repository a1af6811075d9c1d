// SPDX-License-Identifier: Apache-2.0
// A cache in pages is a cache in contiguous memory, bit by bit; it only holds less memory.
#include "adore/kv_cache.hpp"
#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policy_text.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/paged_store.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t layers = 2, kv_heads = 2, heads = 4, channels = 4;

std::vector<float> random_numbers(std::mt19937& random, index_t count) {
  std::vector<float> result;
  for (index_t i = 0; i < count; ++i) {
    result.push_back(static_cast<float>(random() % 1024) / 256.0F - 2.0F);
  }
  return result;
}

/// What a model computes for the tokens of one step.
struct tensors {
  tensors(std::mt19937& random, index_t tokens)
      : count(tokens),
        q(random_numbers(random, layers * tokens * heads * channels)),
        k(random_numbers(random, layers * tokens * kv_heads * channels)),
        v(random_numbers(random, layers * tokens * kv_heads * channels)) {}
  /// All layers of a step or prompt that has begun; their outputs.
  template <class Cache>
  std::vector<float> forward(Cache& cache) const {
    std::vector<float> out(q.size());
    for (index_t layer = 0; layer < layers; ++layer) {
      stride_t const at = stride_t{layer} * count * channels;
      cache.append(layer,
                   {k.data() + at * kv_heads, count, kv_heads, channels},
                   {v.data() + at * kv_heads, count, kv_heads, channels});
      cache.attend(layer,
                   {q.data() + at * heads, count, heads, channels},
                   {out.data() + at * heads, count, heads, channels});
    }
    return out;
  }
  index_t count;
  std::vector<float> q, k, v;
};

/// One new token for each open row.
template <class Cache>
void step(Cache& cache, std::mt19937& random, index_t rows = 1) {
  cache.begin_step();
  tensors(random, rows).forward(cache);
  cache.end_step();
}

/// How many pages the rows need by the books, if none is shared.
template <class P>
index_t pages_needed(ledger<P> const& books, index_t page_size) {
  std::set<std::pair<index_t, index_t>> needed;
  for (index_t row = 0; row < books.shape().sequences; ++row) {
    if (!books.is_open(row)) continue;
    for (index_t layer = 0; layer < layers; ++layer) {
      for (index_t head = 0; head < kv_heads; ++head) {
        auto const here = books.positions(books.lane(row, layer, head));
        for (std::size_t slot = 0; slot < here.size(); ++slot) {
          if (here[slot] != no_position)
            needed.insert({row, static_cast<index_t>(slot) / page_size});
        }
      }
    }
  }
  return static_cast<index_t>(needed.size());
}

/// The same random events in pages and in a host_store.
template <class P>
class pair_of_caches {
 public:
  static constexpr index_t rows = 3, slots = 48, longest = 40, max_new = 3;

  pair_of_caches(P policy, scope reach, rebuild_options const& rebuild, unsigned seed)
      : random_(seed),
        page_size_(1 + below(6)),
        paged_(paged_store<float>({rows, layers, kv_heads, slots, channels},
                                  {.page_size = page_size_}),
               policy,
               options(reach, rebuild)),
        plain_(host_store<float>(paged_.store().shape()), policy, options(reach, rebuild)) {}

  void run(int events) {
    for (int n = 0; n < events; ++n) {
      CAPTURE(n);
      event();
      compare();
    }
    for (index_t row = 0; row < rows; ++row) {
      if (is_open(row)) both([&](auto& c) { c.close(row); });
    }
    REQUIRE(paged_.store().free_pages() == paged_.store().pages());
  }

 private:
  static cache_options options(scope reach, rebuild_options const& rebuild) {
    return {.reach = reach,
            .positions = position_scheme::original,
            .max_new = max_new,
            .rotation = rope(channels, 1e4, rope_pairs::halves),
            .rebuild = rebuild};
  }
  index_t below(index_t end) {
    return static_cast<index_t>(random_() % static_cast<unsigned>(end));
  }
  template <class Action>
  void both(Action&& action) {
    action(paged_);
    action(plain_);
  }
  bool is_open(index_t row) const { return plain_.books().is_open(row); }
  bool rebuilds() const { return plain_.options().rebuild.count > 0; }

  void event() {
    index_t const row = below(rows);
    index_t const other = (row + 1) % rows;
    index_t const dice = below(20);
    if (!is_open(row)) {
      auto const seed = static_cast<std::uint64_t>(below(100));
      both([&](auto& c) { c.open(row, seed); });
      if (dice < 10) prompt(row);
    } else if (dice == 0 || plain_.books().next_position(row) > longest - max_new) {
      both([&](auto& c) { c.close(row); });
    } else if (dice < 3 && !is_open(other)) {
      both([&](auto& c) { c.fork(row, other); });
    } else if (dice < 5 && plain_.books().budget(plain_.books().lane(row, 0, 0)) != unbounded) {
      index_t const budget = 4 + below(8);
      both([&](auto& c) { c.set_budget(row, budget); });
    } else if (dice < 7 && !rebuilds()) {
      paged_.compact(row);
    } else if (dice < 8) {
      save_and_load(paged_, row);
      // what a full tier loses next depends on who was loaded last
      if (std::holds_alternative<restore>(plain_.options().rebuild.schedule)) {
        save_and_load(plain_, row);
      }
    } else {
      steps();
    }
  }
  void prompt(index_t row) {
    index_t const count = 1 + below(20);
    std::vector<index_t> ids;
    std::vector<float> scores;
    row_tokens const whole = tokens_of(row, count, ids, scores);
    both([&](auto& c) { c.begin_prompt(whole); });
    tensors const model(random_, count);
    REQUIRE(model.forward(paged_) == model.forward(plain_));
    both([](auto& c) { c.end_step(); });
  }
  row_tokens tokens_of(index_t row,
                       index_t count,
                       std::vector<index_t>& ids,
                       std::vector<float>& scores) {
    for (index_t j = 0; j < count; ++j) ids.push_back(below(5));
    if constexpr (scores_tokens<P>) scores = random_numbers(random_, count);
    return {.row = row, .count = count, .tokens = ids, .scores = scores};
  }
  void steps() {
    std::array<std::vector<index_t>, rows> ids;
    std::array<std::vector<float>, rows> scores;
    std::vector<row_tokens> step_rows;
    std::vector<index_t> accepted;
    for (index_t row = 0; row < rows; ++row) {
      if (!is_open(row) || plain_.books().next_position(row) > longest - max_new) continue;
      auto const i = static_cast<std::size_t>(row);
      step_rows.push_back(tokens_of(row, 1 + below(max_new), ids[i], scores[i]));
      accepted.push_back(below(3) == 0 ? below(step_rows.back().count + 1)
                                       : step_rows.back().count);
    }
    if (step_rows.empty()) return;
    both([&](auto& c) { c.begin_step(step_rows); });
    index_t count = static_cast<index_t>(plain_.rebuilt().size());
    for (row_tokens const& one : step_rows) count += one.count;
    tensors const model(random_, count);
    REQUIRE(model.forward(paged_) == model.forward(plain_));
    both([&](auto& c) { c.end_step(accepted); });
  }
  /// A row's books are saved, the row is closed and opened again; K and V are put back by hand.
  template <class Cache>
  static void save_and_load(Cache& cache, index_t row) {
    row_snapshot const saved = cache.snapshot(row);
    std::vector<float> kv;
    auto const for_cells = [&](auto&& action) {
      for (index_t layer = 0; layer < layers; ++layer) {
        for (index_t head = 0; head < kv_heads; ++head) {
          auto const here = cache.books().positions(cache.books().lane(row, layer, head));
          for (std::size_t slot = 0; slot < here.size(); ++slot) {
            if (here[slot] == no_position) continue;
            auto const s = static_cast<index_t>(slot);
            action(cache.store().keys(layer)(row, head, s));
            action(cache.store().values(layer)(row, head, s));
          }
        }
      }
    };
    for_cells([&](float const* cell) { kv.insert(kv.end(), cell, cell + channels); });
    cache.close(row);
    cache.restore(row, saved);
    float const* from = kv.data();
    for_cells([&](float* cell) {
      std::copy_n(from, channels, cell);
      from += channels;
    });
  }
  void compare() {
    index_t const in_use = paged_.store().pages() - paged_.store().free_pages();
    index_t const needed = pages_needed(paged_.books(), page_size_);
    REQUIRE(in_use <= needed);
    bool const alone = is_open(0) + is_open(1) + is_open(2) == 1;
    if (alone) REQUIRE(in_use == needed);  // nobody to share with
    for (index_t row = 0; row < rows; ++row) {
      for (index_t layer = 0; layer < layers; ++layer) {
        for (index_t head = 0; head < kv_heads; ++head) {
          if (is_open(row)) REQUIRE(paged_.kept(row, layer, head) == plain_.kept(row, layer, head));
        }
      }
      if (rebuilds() && is_open(row)) REQUIRE(paged_.back(row) == plain_.back(row));
    }
  }

  std::mt19937 random_;
  index_t page_size_;
  kv_cache<paged_store<float>, P> paged_;
  kv_cache<host_store<float>, P> plain_;
};

template <class P>
void run_pair(P policy, scope reach, rebuild_options const& rebuild = {}) {
  for (unsigned seed = 0; seed < 2; ++seed) {
    CAPTURE(seed);
    CAPTURE(std::string(word_of(reach)));
    pair_of_caches<P>(policy, reach, rebuild, seed).run(120);
  }
}

template <class... Policies>
std::vector<std::string> names_of(policy_list<Policies...>) {
  return {std::string(Policies::name)...};
}

/// One for each ability that a cache treats apart: a cache of each is compiled twice.
using tested_policies = policy_list<sliding_window,
                                    strided_doubling,
                                    h2o,
                                    tova,
                                    key_norm,
                                    random_victim,
                                    snapkv,
                                    sentinel,
                                    dynamic_top_k,
                                    attentive_release>;
using window_in_pages = kv_cache<paged_store<float>, sliding_window>;

}  // namespace

TEST_CASE("in pages a policy does, bit by bit, what it does in contiguous memory") {
  for (std::string const& name : names_of(tested_policies{})) {
    CAPTURE(name);
    // those that need more than a budget
    std::string const text = name == "snapkv"     ? "snapkv(size=12,window=4)"
                             : name == "sentinel" ? "sentinel(open=1,close=2)"
                                                  : name;
    auto const budget = text == name ? std::optional<index_t>(12) : std::nullopt;
    with_policy(text, budget, tested_policies{}, [&](auto const& policy) {
      for (scope const reach : {scope::model, scope::layer, scope::kv_head}) {
        run_pair(policy, reach);
      }
    });
  }
  in_blocks<h2o> blocks{};
  blocks.of = {.heavy = 8, .recent = 4};
  blocks.size = 4;
  run_pair(blocks, scope::layer);
}

TEST_CASE("tokens that come back have memory of their own in pages") {
  h2o const policy{.heavy = 3, .recent = 3};
  std::vector<rebuild_schedule> const schedules{
      every_step{}, on_entry{.pool = 2}, every{.steps = 3}, restore{.limit_bytes = 4096}};
  for (rebuild_schedule const& schedule : schedules) {
    CAPTURE(schedule.index());
    run_pair(policy, scope::model, {.count = 3, .schedule = schedule});
    run_pair(policy,
             scope::model,
             {.count = 3, .schedule = schedule, .admit = rebuild_admission::compete});
  }
}

TEST_CASE("a lane at its budget fills its holes and takes no more pages under any policy") {
  for (char const* const name : {"sliding_window", "strided_doubling", "h2o", "random_victim"}) {
    CAPTURE(name);
    with_policy(name, 14, tested_policies{}, [&](auto const& policy) {
      std::mt19937 random(1);
      kv_cache cache(paged_store<float>({1, layers, kv_heads, 400, channels}, {.page_size = 4}),
                     policy,
                     {.reach = scope::kv_head, .positions = position_scheme::original});
      cache.open(0);
      for (int n = 0; n < 300; ++n) {
        step(cache, random);
        // 14 tokens and the newcomer, in 15 of 400 slots
        CHECK(cache.store().pages() - cache.store().free_pages() <= 4);
      }
    });
  }
}

TEST_CASE("whole blocks of a page's size leave whole pages") {
  std::mt19937 random(2);
  in_blocks<sliding_window> blocks{};
  blocks.of.size = 12;
  blocks.size = 4;
  kv_cache cache(paged_store<float>({1, layers, kv_heads, 32, channels}, {.page_size = 4}), blocks);
  cache.open(0);
  for (int n = 0; n < 12; ++n) step(cache, random);
  CHECK(cache.store().free_pages() == 5);
  step(cache, random);  // the 13th token takes a page, and the oldest block gives one back
  CHECK(cache.kept(0) == std::vector<position_t>{4, 5, 6, 7, 8, 9, 10, 11, 12});
  CHECK(cache.store().free_pages() == 5);
  for (int n = 0; n < 40; ++n) {  // and so on: a block's slots are the next block's
    step(cache, random);
    CHECK(cache.store().free_pages() == 5);
  }
}

TEST_CASE("a page that one row gives back serves another in the next step") {
  std::mt19937 random(3);
  window_in_pages cache(
      paged_store<float>({2, layers, kv_heads, 16, channels}, {.page_size = 4, .pages = 5}),
      {.size = 15});
  cache.open(0);
  cache.open(1);
  for (int n = 0; n < 8; ++n) step(cache, random, 2);
  CHECK(cache.store().free_pages() == 1);
  cache.set_budget(0, 4);  // its oldest four leave, all of one page
  CHECK(cache.store().free_pages() == 2);
  step(cache, random, 2);
  CHECK(cache.store().free_pages() == 0);
  CHECK(cache.kept(1).size() == 9);
}

TEST_CASE("a step for which there are too few pages does not begin, and can be tried again") {
  std::mt19937 random(4);
  window_in_pages cache(
      paged_store<float>({2, layers, kv_heads, 16, channels}, {.page_size = 4, .pages = 4}),
      {.size = 15});
  cache.open(0);
  cache.open(1);
  for (int n = 0; n < 8; ++n) step(cache, random, 2);
  auto const kept = cache.kept(0);
  CHECK_THROWS_AS(cache.begin_step(), std::length_error);
  CHECK_THROWS_AS(cache.begin_step(row_tokens{.row = 1}), std::length_error);
  CHECK(cache.kept(0) == kept);
  CHECK(cache.books().next_position(0) == 8);
  CHECK(cache.store().free_pages() == 0);
  cache.close(1);
  CHECK(cache.store().free_pages() == 2);
  step(cache, random);
  CHECK(cache.books().next_position(0) == 9);

  cache.open(1);
  CHECK_THROWS_AS(cache.begin_prompt({.row = 1, .count = 9}), std::length_error);
  CHECK(cache.store().free_pages() == 1);
  cache.begin_prompt({.row = 1, .count = 4});
  tensors(random, 4).forward(cache);
  cache.end_step();
  CHECK(cache.store().free_pages() == 0);

  row_snapshot const saved = cache.snapshot(0);  // nine tokens, three pages
  cache.close(0);
  cache.open(0);
  cache.begin_prompt({.row = 0, .count = 4});
  tensors(random, 4).forward(cache);
  cache.end_step();
  cache.close(1);
  cache.restore(1, saved);
  CHECK(cache.store().free_pages() == 0);
  cache.close(1);
  cache.begin_step(row_tokens{.row = 0});
  tensors(random, 1).forward(cache);
  cache.end_step();
  CHECK_THROWS_AS(cache.restore(1, saved), std::length_error);
  CHECK(cache.store().free_pages() == 2);
  cache.open(1);  // it is free
}

TEST_CASE("a dense prompt takes pages for what its lanes may keep of it") {
  std::mt19937 random(7);
  window_in_pages cache(
      paged_store<float>({2, layers, kv_heads, 64, channels}, {.page_size = 4, .pages = 16}),
      {.size = 8});
  cache.open(0);
  cache.open(1);
  cache.begin_step(row_tokens{.row = 1});
  tensors(random, 1).forward(cache);
  cache.end_step();
  cache.begin_prompt({.row = 0, .count = 64});
  CHECK(cache.store().free_pages() == 13);
  tensors(random, 64).forward(cache);
  cache.end_step();
  CHECK(cache.kept(0).size() == 8);
  CHECK(cache.store().free_pages() == 13);
}

TEST_CASE("a chunk of tokens fills holes and then whole pages") {
  for (index_t const keep : {1, 2, 4}) {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      std::mt19937 random(8);
      kv_cache cache(paged_store<float>({1, layers, kv_heads, 72, channels}, {.page_size = 4}),
                     random_victim{.size = 64},
                     {.reach = scope::model, .max_new = 8});
      cache.open(0, seed);
      for (int n = 0; n < 64; ++n) step(cache, random);
      cache.set_budget(0, keep);
      index_t const before = cache.store().free_pages();
      index_t const holes = 4 * (cache.store().pages() - before) - keep;
      cache.begin_step(row_tokens{.row = 0, .count = 8});
      CHECK(before - cache.store().free_pages() == (std::max(8 - holes, 0) + 3) / 4);
      tensors(random, 8).forward(cache);
      cache.end_step();
    }
  }
}

TEST_CASE("no pages are asked for guests that cannot come") {
  std::mt19937 random(9);
  std::vector<index_t> const id{5};
  window_in_pages cache(
      paged_store<float>({2, layers, kv_heads, 24, channels}, {.page_size = 2, .pages = 12}),
      {.size = 12},
      {.reach = scope::model, .rebuild = {.count = 8}});
  auto const one = [&](index_t row) {
    cache.begin_step(row_tokens{.row = row, .count = 1, .tokens = id});
    tensors(random, 1 + static_cast<index_t>(cache.rebuilt().size())).forward(cache);
    cache.end_step();
  };
  cache.open(0);
  cache.open(1);
  for (int n = 0; n < 12; ++n) one(0);
  CHECK(cache.store().free_pages() == 6);
  for (int n = 0; n < 12; ++n) one(1);  // nothing has been released that could come back
  CHECK(cache.store().free_pages() == 0);
}

TEST_CASE("a refused step keeps the copies that were made before it was") {
  std::mt19937 random(10);
  window_in_pages cache(
      paged_store<float>({4, layers, kv_heads, 8, channels}, {.page_size = 4, .pages = 3}),
      {.size = 7});
  cache.open(0);
  cache.begin_prompt({.row = 0, .count = 2});
  tensors(random, 2).forward(cache);
  cache.end_step();
  for (index_t const row : {1, 2, 3}) cache.fork(0, row);
  CHECK(cache.store().free_pages() == 2);
  CHECK_THROWS_AS(cache.begin_step(), std::length_error);  // three of the four need a copy
  CHECK(cache.store().free_pages() == 0);
  cache.close(1);  // one of those that have it
  CHECK(cache.store().free_pages() == 1);
  step(cache, random, 3);
  for (index_t const row : {0, 2, 3}) CHECK(cache.kept(row) == std::vector<position_t>{0, 1, 2});
}

TEST_CASE("rejected tokens give their pages back") {
  std::mt19937 random(5);
  window_in_pages cache(paged_store<float>({1, layers, kv_heads, 20, channels}, {.page_size = 4}),
                        {.size = 14},
                        {.max_new = 6});
  cache.open(0);
  for (int n = 0; n < 3; ++n) step(cache, random);
  CHECK(cache.store().free_pages() == 4);
  cache.begin_step(row_tokens{.row = 0, .count = 6});
  CHECK(cache.store().free_pages() == 2);
  tensors(random, 6).forward(cache);
  cache.end_step(1);
  CHECK(cache.store().free_pages() == 4);
  CHECK(cache.kept(0) == std::vector<position_t>{0, 1, 2, 3});
}

TEST_CASE("a common prompt is there once until the rows write") {
  std::mt19937 random(6);
  window_in_pages cache(paged_store<float>({3, layers, kv_heads, 24, channels}, {.page_size = 4}),
                        {.size = 23});
  cache.open(0);
  cache.begin_prompt({.row = 0, .count = 10});
  tensors(random, 10).forward(cache);
  cache.end_step();
  index_t const all = cache.store().pages();
  CHECK(all - cache.store().free_pages() == 3);
  cache.fork(0, 1);
  cache.fork(0, 2);
  CHECK(all - cache.store().free_pages() == 3);
  step(cache, random, 3);  // the last page, with two tokens of the prompt, is copied twice
  CHECK(all - cache.store().free_pages() == 5);
  cache.close(0);
  CHECK(all - cache.store().free_pages() == 4);
  cache.close(2);
  CHECK(cache.kept(1).size() == 11);
  CHECK(all - cache.store().free_pages() == 3);
}

TEST_CASE("what pages cannot do is refused by a sentence") {
  paged_store<float> const store({1, layers, kv_heads, 16, channels});
  CHECK_THROWS_WITH_AS(
      window_in_pages(store, {.size = 8}, {.compact = compaction::gather}),
      "adore: compact: in pages new tokens fill the holes; leave cache_options.compact at "
      "slot_reuse, and call compact(row) when a row has become smaller",
      std::invalid_argument);
  kv_cache cache(
      store, h2o{.heavy = 4, .recent = 4}, {.reach = scope::model, .rebuild = {.count = 2}});
  cache.open(0);
  CHECK_THROWS_AS(cache.compact(0), std::logic_error);
}

}  // namespace adore::testing
