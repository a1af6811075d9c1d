// SPDX-License-Identifier: Apache-2.0
// The facade: weights that are watched, attention that is handed over, prompts in all modes, stores
// with their own layout.
#include "adore/kv_cache.hpp"

#include "adore/policies/dynamic_top_k.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/sentinel.hpp"
#include "adore/stores/host_store.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

namespace adore::testing {

namespace {

/// A store whose values lie channel by channel, as engines keep them for a product from the left.
class transposed_store {
 public:
  static constexpr scope finest_scope = scope::kv_head;
  explicit transposed_store(kv_shape const& shape)
      : shape_(shape),
        keys_(static_cast<std::size_t>(shape.sequences * shape.layers * shape.kv_heads *
                                       shape.slots * shape.channels)),
        values_(keys_.size()) {}
  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return 1; }
  index_t release(released_positions const& tokens) {
    return static_cast<index_t>(tokens.positions.size());
  }
  kv_view<float> keys(index_t layer) { return view(keys_, layer); }
  kv_view<float> values(index_t layer) { return view(values_, layer); }

 private:
  /// [layer, sequence, kv_head, channel, slot]
  kv_view<float> view(std::vector<float>& data, index_t layer) {
    stride_t const head = stride_t{shape_.slots} * shape_.channels;
    stride_t const sequence = head * shape_.kv_heads;
    return {data.data() + sequence * shape_.sequences * layer,
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels,
            sequence,
            head,
            1,
            shape_.slots};
  }
  kv_shape shape_;
  std::vector<float> keys_, values_;
};
static_assert(slot_store<transposed_store>);

struct refusing_store : host_store<float> {
  using host_store<float>::host_store;
  void fork(index_t, index_t) { throw std::length_error("no room"); }
};

constexpr index_t heads = 4, kv_heads = 2, channels = 8;

struct tokens {
  explicit tokens(index_t n, unsigned seed)
      : count(n),
        q(random(n * heads, seed)),
        k(random(n * kv_heads, seed + 1)),
        v(random(n * kv_heads, seed + 2)),
        out(q.size()) {}
  static std::vector<float> random(index_t vectors, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> x(static_cast<std::size_t>(vectors * channels));
    for (float& value : x) value = static_cast<float>(random() % 1024) / 256.0F - 2.0F;
    return x;
  }
  template <class Cache, class Watch = no_watcher>
  void forward(Cache& cache, Watch&& watch = {}) {
    cache.append(0,
                 token_view<float const>(k.data(), count, kv_heads, channels),
                 token_view<float const>(v.data(), count, kv_heads, channels));
    cache.attend(0,
                 token_view<float const>(q.data(), count, heads, channels),
                 token_view<float>(out.data(), count, heads, channels),
                 watch);
  }
  index_t count;
  std::vector<float> q, k, v, out;
};

template <class Store = host_store<float>, class P>
kv_cache<Store, P> make(P policy, cache_options options = {}, index_t slots = 24) {
  return {Store({1, 1, kv_heads, slots, channels}), policy, options};
}

}  // namespace

TEST_CASE("the weights of a query sum to the number of heads that they are reduced from") {
  for (gqa_reduction const reduction : {gqa_reduction::sum, gqa_reduction::mean}) {
    auto cache = make(h2o{.heavy = 3, .recent = 2}, {.reduction = reduction});
    cache.open(0);
    for (unsigned n = 0; n < 12; ++n) {
      tokens token(1, n);
      int records = 0;
      cache.begin_step();
      token.forward(cache, [&](attention_record const& record) {
        ++records;
        float sum = 0.0F;
        for (float const w : record.weights) sum += w;
        CHECK(sum == doctest::Approx(reduction == gqa_reduction::sum ? 2.0 : 1.0).epsilon(1e-6));
        CHECK(record.positions.size() == std::min(n + 1, 6U));
        CHECK(record.positions.back() == static_cast<position_t>(n));
      });
      cache.end_step();
      CHECK(records == kv_heads);
    }
  }
}

TEST_CASE("attention that is handed over decides as attention that the cache computes") {
  auto attends = make(h2o{.heavy = 3, .recent = 2});
  auto told = make(h2o{.heavy = 3, .recent = 2});
  auto by_slot = make(h2o{.heavy = 3, .recent = 2});
  for (auto* cache : {&attends, &told, &by_slot}) cache->open(0);
  for (unsigned n = 0; n < 16; ++n) {
    tokens token(1, 100 + n);
    // [query head, column]: all of a group's weight on its first head
    std::vector<float> weights(heads * 24, 0.0F), in_slots(heads * 24, 0.0F);
    position_list columns = from_to(0, 24);
    attends.begin_step();
    told.begin_step();
    by_slot.begin_step();
    token.forward(attends, [&](attention_record const& record) {
      for (std::size_t i = 0; i < record.weights.size(); ++i) {
        auto const row = static_cast<std::size_t>(record.kv_head * 2 * 24);
        weights[row + static_cast<std::size_t>(record.positions[i])] = record.weights[i];
        auto const slots = by_slot.books().positions(by_slot.books().lane(0, 0, record.kv_head));
        auto const slot =
            std::find(slots.begin(), slots.end(), record.positions[i]) - slots.begin();
        in_slots[row + static_cast<std::size_t>(slot)] = record.weights[i];
      }
    });
    told.observe(0, token_view<float const>(weights.data(), 1, heads, 24), columns);
    by_slot.observe(0, token_view<float const>(in_slots.data(), 1, heads, 24));
    for (auto* cache : {&attends, &told, &by_slot}) cache->end_step();
    for (index_t head = 0; head < kv_heads; ++head) {
      CHECK(told.kept(0, 0, head) == attends.kept(0, 0, head));
      CHECK(by_slot.kept(0, 0, head) == attends.kept(0, 0, head));
    }
  }
}

TEST_CASE("a prompt enters at once, in chunks or token by token") {
  tokens const text(20, 5);
  std::vector<index_t> const ids(20, 0);
  auto const run = [&](prompt_mode mode, index_t max_new) {
    auto cache = make(h2o{.heavy = 4, .recent = 2}, {.max_new = max_new, .prompt = mode});
    cache.open(0);
    index_t done = 0;
    std::vector<std::size_t> calls;
    cache.prompt(0, ids, [&](std::span<index_t const> part) {
      calls.push_back(part.size());
      auto const n = static_cast<index_t>(part.size());
      std::vector<float> out(static_cast<std::size_t>(n * heads * channels));
      cache.append(0,
                   token_view<float const>(
                       text.k.data() + done * kv_heads * channels, n, kv_heads, channels),
                   token_view<float const>(
                       text.v.data() + done * kv_heads * channels, n, kv_heads, channels));
      cache.attend(
          0,
          token_view<float const>(text.q.data() + done * heads * channels, n, heads, channels),
          token_view<float>(out.data(), n, heads, channels));
      done += n;
    });
    CHECK(done == 20);
    CHECK(cache.kept(0).size() == 6);
    CHECK(cache.kept(0).back() == 19);
    return calls;
  };
  CHECK(run(prompt_mode::full_then_select, 1) == std::vector<std::size_t>{20});
  CHECK(run(prompt_mode::chunked, 8) == std::vector<std::size_t>{8, 8, 4});
  CHECK(run(prompt_mode::streamed, 8) == std::vector<std::size_t>(20, 1));
}

TEST_CASE("a prompt of which more stays than a lane has slots is refused before it begins") {
  kv_cache cache = make(keep_all{}, {}, 8);
  cache.open(0);
  CHECK_THROWS_WITH_AS(cache.begin_prompt({0, 20}),
                       "adore: begin_prompt: 20 tokens of the prompt stay; a lane has 8 slots",
                       std::length_error);
  cache.begin_prompt({0, 8});  // idle, and as empty as before
  tokens(8, 1).forward(cache);
  cache.end_step();
  CHECK(cache.kept(0) == position_list{0, 1, 2, 3, 4, 5, 6, 7});

  // without a budget, but of each span its closing token stays
  auto spans = make(sentinel{.open = 1, .close = 2}, {}, 8);
  spans.open(0);
  std::vector<index_t> ids(20, 0);
  ids[2] = 1;
  ids[17] = 2;  // 0, 1, 17, 18, 19 stay
  spans.begin_prompt({.row = 0, .count = 20, .tokens = ids});
  tokens(20, 1).forward(spans);
  spans.end_step();
  CHECK(spans.kept(0) == position_list{0, 1, 17, 18, 19});
  spans.close(0);
  spans.open(0);
  ids[17] = 0;  // the span is not closed
  CHECK_THROWS_WITH_AS(spans.begin_prompt({.row = 0, .count = 20, .tokens = ids}),
                       "adore: begin_prompt: 20 tokens of the prompt stay; a lane has 8 slots",
                       std::length_error);
  ids.assign(5, 2);  // no span is open: what the refused prompt opened is forgotten
  spans.begin_prompt({.row = 0, .count = 5, .tokens = ids});
  tokens(5, 1).forward(spans);
  spans.end_step();
  CHECK(spans.kept(0) == position_list{0, 1, 2, 3, 4});
}

TEST_CASE("a fork that the store refuses leaves the row free") {
  kv_cache<refusing_store, keep_all> cache(refusing_store({2, 1, kv_heads, 8, channels}), {});
  cache.open(0);
  CHECK_THROWS_AS(cache.fork(0, 1), std::length_error);
  CHECK_FALSE(cache.books().is_open(1));
  cache.open(1);
  cache.close(0);
}

TEST_CASE("values that lie channel by channel give the same output") {
  auto rows = make(h2o{.heavy = 3, .recent = 2});
  auto columns = make<transposed_store>(h2o{.heavy = 3, .recent = 2});
  rows.open(0);
  columns.open(0);
  for (unsigned n = 0; n < 14; ++n) {
    tokens a(1, 40 + n);
    tokens b(1, 40 + n);
    rows.begin_step();
    columns.begin_step();
    a.forward(rows);
    b.forward(columns);
    rows.end_step();
    columns.end_step();
    CHECK(a.out == b.out);
    CHECK(rows.kept(0, 0, 1) == columns.kept(0, 0, 1));
  }
}

TEST_CASE("top-K of at least all keys is dense attention, bit for bit, in every scope") {
  for (top_k_scope const agreed : {top_k_scope::head, top_k_scope::kv_head, top_k_scope::layer}) {
    auto limited = make(dynamic_top_k{.count = 16, .agreed = agreed}, {.reach = scope::layer});
    auto dense = make(h2o{.heavy = 20, .recent = 2});
    limited.open(0);
    dense.open(0);
    for (unsigned n = 0; n < 16; ++n) {
      tokens a(1, n);
      tokens b(1, n);
      limited.begin_step();
      dense.begin_step();
      a.forward(limited);
      b.forward(dense);
      limited.end_step();
      dense.end_step();
      CHECK(a.out == b.out);
    }
  }
}

TEST_CASE("heads that agree attend the same keys, as many as they may, and all of them in part") {
  for (top_k_scope const agreed : {top_k_scope::head, top_k_scope::kv_head, top_k_scope::layer}) {
    for (bool const self : {false, true}) {
      auto cache = make(dynamic_top_k{.count = 4, .agreed = agreed, .include_self = self},
                        {.reach = scope::layer});
      auto full = make(dynamic_top_k{.count = 99}, {.reach = scope::layer});
      cache.open(0);
      full.open(0);
      for (unsigned n = 0; n < 14; ++n) {
        tokens token(1, 7 * n);
        std::vector<position_list> sets;
        std::vector<float> mass;
        cache.begin_step();
        full.begin_step();
        token.forward(cache, [&](attention_record const& record) {
          auto& set = sets.emplace_back();
          for (std::size_t i = 0; i < record.weights.size(); ++i) {
            if (record.weights[i] > 0.0F) set.push_back(record.positions[i]);
          }
          if (agreed != top_k_scope::head) CHECK(set.size() == std::min(n + 1, 4U));
          if (self) CHECK(set.back() == static_cast<position_t>(n));
        });
        if (agreed == top_k_scope::layer) CHECK(sets[0] == sets[1]);
        // where the group agrees its set is the four of the largest weight in full attention
        token.forward(full, [&](attention_record const& record) {
          if (agreed != top_k_scope::kv_head || self) return;
          float least = 9.0F;
          float best_hidden = 0.0F;
          auto const& set = sets[static_cast<std::size_t>(record.kv_head)];
          for (std::size_t i = 0; i < record.weights.size(); ++i) {
            bool const in = std::binary_search(set.begin(), set.end(), record.positions[i]);
            if (in) least = std::min(least, record.weights[i]);
            if (!in) best_hidden = std::max(best_hidden, record.weights[i]);
          }
          CHECK(least >= best_hidden);
        });
        cache.end_step();
        full.end_step();
      }
    }
  }
}

}  // namespace adore::testing
