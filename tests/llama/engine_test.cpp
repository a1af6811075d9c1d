// SPDX-License-Identifier: Apache-2.0
// The example engine on tiny random models: against a naive forward pass, and against itself in
// other batches, with other thread counts, scopes and policies.
#include "llama/engine.hpp"

#include "controller/random_controller.hpp"
#include "llama/naive_forward.hpp"
#include "llama/tiny_model.hpp"
#include "llama/token_scorer.hpp"
#include <adore/rebuild_text.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using llama_example::engine;
using llama_example::group;
using llama_example::testing::naive_forward;
using llama_example::testing::naive_vector;
using llama_example::testing::temporary_folder;
using llama_example::testing::tiny_model;
using llama_example::testing::tiny_shape;

using tokens_t = std::vector<std::int32_t>;
using logits_t = std::vector<std::vector<float>>;  // [token][vocabulary]

struct loaded_model {
  tiny_model numbers;
  llama_example::model weights;
  explicit loaded_model(tiny_shape const& shape = {}) : numbers(shape) {
    temporary_folder const folder;
    numbers.write(folder.file("tiny.gguf"));
    weights = llama_example::read_model(folder.file("tiny.gguf"));
  }
};

tokens_t random_text(int count, unsigned seed, int vocabulary = tiny_shape{}.vocabulary) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<std::int32_t> distribution(0, vocabulary - 1);
  tokens_t text;
  for (int i = 0; i < count; ++i) text.push_back(distribution(random));
  return text;
}

void keep(std::span<float const> logits, std::size_t vocabulary, logits_t& to) {
  for (std::size_t begin = 0; begin < logits.size(); begin += vocabulary) {
    auto const token = logits.subspan(begin, vocabulary);
    to.emplace_back(token.begin(), token.end());
  }
}

/// A controller of random numbers, for policies that take scores.
class test_scorer {
 public:
  explicit test_scorer(llama_example::model const& weights,
                       adore::score_mode mode = adore::score_mode::static_score)
      : controller_(random_weights(mode, weights.width)), scorer_(controller_, weights, 4) {}
  llama_example::token_scorer* for_cache(adore::any_cache const& cache) {
    return cache.takes_scores() ? &scorer_ : nullptr;
  }

 private:
  static adore::controller_weights random_weights(adore::score_mode mode, int width) {
    std::mt19937 random(3);
    adore::controller_options options;
    options.mode = mode;
    return adore::testing::random_controller(random, options, width, 8, 1);
  }
  adore::controller controller_;
  llama_example::token_scorer scorer_;
};

/// One row's text, token by token.
logits_t alone(engine& engine, adore::any_cache& cache, adore::index_t row, tokens_t const& text) {
  logits_t logits;
  test_scorer scorer(engine.weights());
  for (std::int32_t const& token : text) {
    group part{.cache = &cache, .rows = {{row, 1, {&token, 1}}}, .scorer = scorer.for_cache(cache)};
    keep(engine.step({&part, 1}), static_cast<std::size_t>(engine.weights().vocabulary), logits);
  }
  return logits;
}

struct choice {
  std::string policy = "keep_all";
  std::optional<adore::index_t> budget{};
  std::optional<adore::scope> reach{};
  std::optional<adore::position_scheme> positions{};
  adore::index_t rows = 1, tokens = 64, prompt = 0;
};

std::unique_ptr<adore::any_cache> cache_for(engine const& engine, choice const& wanted) {
  adore::cache_options options = engine.cache_options();
  options.reach = wanted.reach;
  options.positions = wanted.positions;
  auto cache = engine.make_cache(wanted.policy,
                                 {.rows = wanted.rows,
                                  .tokens = wanted.tokens,
                                  .prompt = wanted.prompt,
                                  .budget = wanted.budget},
                                 options);
  for (adore::index_t row = 0; row < wanted.rows; ++row) {
    cache->open(row, static_cast<std::uint64_t>(row));
  }
  return cache;
}

logits_t alone(engine& engine, choice const& wanted, tokens_t const& text) {
  auto const cache = cache_for(engine, wanted);
  return alone(engine, *cache, 0, text);
}

/// Largest difference, relative to the largest logit.
template <class A, class B>
double difference(std::vector<A> const& a, std::vector<B> const& b) {
  REQUIRE(a.size() == b.size());
  REQUIRE_FALSE(a.empty());
  double largest = 0.0;
  double scale = 0.0;
  for (std::size_t t = 0; t < a.size(); ++t) {
    REQUIRE(a[t].size() == b[t].size());
    for (std::size_t i = 0; i < a[t].size(); ++i) {
      double const apart = std::abs(double{a[t][i]} - double{b[t][i]});
      REQUIRE(std::isfinite(apart));
      largest = std::max(largest, apart);
      scale = std::max(scale, std::abs(double{b[t][i]}));
    }
  }
  return largest / scale;
}

template <class... Policies>
std::vector<std::string> names_of(adore::policy_list<Policies...>) {
  return {Policies::name...};
}

/// A text for each policy that means something on any model at a budget of 8.
std::vector<std::string> every_policy_text() {
  std::vector<std::string> texts = names_of(adore::every_policy{});
  for (std::string& text : texts) {
    if (text == "snapkv") text = "snapkv(window=4,then=window)";
    if (text == "sentinel") text = "sentinel(open=1,close=2)";
  }
  return texts;
}

}  // namespace

TEST_CASE("the engine's logits are those of a naive forward pass") {
  tiny_shape shape;
  SUBCASE("as many KV heads as query heads") {
    shape.kv_heads = 4;
  }
  SUBCASE("two query heads per KV head") {
    shape.kv_heads = 2;
  }
  SUBCASE("one KV head") {
    shape.kv_heads = 1;
  }
  SUBCASE("three layers, an output matrix of its own") {
    shape.layers = 3, shape.tied = false;
  }
  SUBCASE("another base") {
    shape.rope_base = 500.0F;
  }
  SUBCASE("frequencies divided by factors") {
    shape.rope_factors = true;
  }
  SUBCASE("heads wider than their share") {
    shape.channels = 12, shape.rope_channels = 12;
  }
  SUBCASE("only some channels turned, with factors, one KV head, not tied") {
    shape.rope_channels = 6;
    shape.rope_factors = true;
    shape.kv_heads = 1;
    shape.tied = false;
  }
  CAPTURE(shape.kv_heads);
  loaded_model const model(shape);
  engine engine(model.weights, 1);
  tokens_t const text = random_text(40, 7);
  auto const naive = naive_forward(model.numbers, text);
  logits_t const logits = alone(engine, {}, text);
  CHECK(difference(logits, naive) < 1e-5);
  for (std::size_t t = 0; t < text.size(); ++t) {
    for (std::size_t i = 0; i < naive[t].size(); ++i) {
      REQUIRE(std::abs(double{logits[t][i]} - naive[t][i]) < 1e-4);
    }
  }
}

TEST_CASE("a released token is gone: a window is a naive pass that sees only the window") {
  loaded_model const model({.layers = 3});
  engine engine(model.weights, 1);
  tokens_t const text = random_text(40, 8);
  auto const naive = naive_forward(model.numbers, text, 7);
  choice const window{.policy = "sliding_window(size=6)"};
  CHECK(difference(alone(engine, window, text), naive) < 1e-5);
  CHECK(difference(alone(engine, {}, text), naive) > 1e-2);  // else the text tells nothing
}

TEST_CASE("a row's logits do not depend on what else is in the batch") {
  loaded_model const model;
  engine engine(model.weights, 1);
  struct sequence {
    std::size_t group;
    adore::index_t row;
    std::size_t begins;  // at this step of the batch
    tokens_t text;
    logits_t seen{};
  };
  std::vector<sequence> sequences = {{0, 0, 0, random_text(30, 1)},
                                     {0, 1, 4, random_text(20, 2)},
                                     {1, 2, 0, random_text(25, 3)},
                                     {1, 0, 9, random_text(12, 4)},
                                     {1, 1, 1, random_text(28, 5)},
                                     {2, 0, 3, random_text(9, 6)}};
  std::vector<std::unique_ptr<adore::any_cache>> caches;
  for (int i = 0; i < 3; ++i) caches.push_back(cache_for(engine, {.rows = 3}));
  for (std::size_t step = 0; step < 30; ++step) {
    std::vector<group> groups;
    std::vector<sequence*> order;  // of the logits
    for (std::size_t g = 0; g < caches.size(); ++g) {
      group part{.cache = caches[g].get(), .rows = {}};
      for (sequence& each : sequences) {
        bool const runs = step >= each.begins && step - each.begins < each.text.size();
        if (each.group != g || !runs) continue;
        part.rows.push_back({each.row, 1, {&each.text[step - each.begins], 1}});
        order.push_back(&each);
      }
      if (!part.rows.empty()) groups.push_back(std::move(part));
    }
    logits_t all;
    keep(engine.step(groups), static_cast<std::size_t>(model.weights.vocabulary), all);
    REQUIRE(all.size() == order.size());
    for (std::size_t i = 0; i < all.size(); ++i) order[i]->seen.push_back(all[i]);
  }
  for (sequence const& each : sequences) {
    CAPTURE(each.group);
    CAPTURE(each.row);
    CHECK(difference(each.seen, alone(engine, {}, each.text)) < 1e-5);
  }
}

TEST_CASE("a dense prompt gives what its tokens give one by one") {
  loaded_model const model({.layers = 3, .tied = false});
  engine engine(model.weights, 1);
  tokens_t const text = random_text(30, 9);
  tokens_t const prompt(text.begin(), text.begin() + 22);
  logits_t const expected = alone(engine, {}, text);

  auto const cache = cache_for(engine, {});
  auto const other = cache_for(engine, {});  // a step in the same batch as the prompt
  logits_t logits;
  std::vector<group> groups;
  groups.push_back({.cache = cache.get(), .rows = {{0, 22, prompt}}, .is_prompt = true});
  groups.push_back({.cache = other.get(), .rows = {{0, 1, {&text[0], 1}}}});
  keep(engine.step(groups), static_cast<std::size_t>(model.weights.vocabulary), logits);
  REQUIRE(logits.size() == 23);
  CHECK(difference(logits_t{logits.back()}, logits_t{expected.front()}) < 1e-5);
  logits.pop_back();
  logits_t const rest = alone(engine, *cache, 0, {text.begin() + 22, text.end()});
  logits.insert(logits.end(), rest.begin(), rest.end());
  CHECK(difference(logits, expected) < 1e-5);
}

TEST_CASE("a budget that the text does not fill is full attention, in every scope") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t const text = random_text(30, 10);
  logits_t const full = alone(engine, {.tokens = 40}, text);
  for (char const* const policy : {"sliding_window",
                                   "streaming_llm",
                                   "strided",
                                   "strided_doubling",
                                   "h2o",
                                   "decayed_h2o",
                                   "h2o_per_age",
                                   "h2o_mask_simulation",
                                   "h2o_algorithm_1",
                                   "tova",
                                   "key_norm",
                                   "random_reservoir",
                                   "random_victim",
                                   "dynamic_top_k(agreed=kv_head)"}) {
    for (adore::scope const reach :
         {adore::scope::model, adore::scope::layer, adore::scope::kv_head}) {
      for (adore::index_t const budget : {30, 36}) {
        CAPTURE(policy);
        CAPTURE(adore::word_of(reach));
        CAPTURE(budget);
        choice const wanted{.policy = policy, .budget = budget, .reach = reach, .tokens = 40};
        CHECK(difference(alone(engine, wanted, text), full) < 1e-6);
      }
    }
  }
}

TEST_CASE("a budget larger than the longest sequence is full attention") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t const text = random_text(30, 10);
  logits_t const full = alone(engine, {.tokens = 30}, text);
  choice const wanted{.policy = "h2o", .budget = 64, .tokens = 30};
  CHECK(difference(alone(engine, wanted, text), full) < 1e-6);
}

TEST_CASE("kept and rebuilt tokens that are all tokens are full attention") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t const text = random_text(30, 15);
  logits_t const full = alone(engine, {.tokens = 30}, text);
  for (auto const mode : {adore::score_mode::static_score, adore::score_mode::query_conditioned}) {
    for (char const* const rebuild : {"rebuild(count=22)", "rebuild(count=22,schedule=restore)"}) {
      CAPTURE(rebuild);
      adore::cache_options options = engine.cache_options();
      options.rebuild = adore::rebuild_of(rebuild);
      auto const cache =
          engine.make_cache("adaptive_release", {.tokens = 30, .budget = 8}, options);
      cache->open(0, 0);
      test_scorer scorer(model.weights, mode);
      logits_t logits;
      for (std::int32_t const& token : text) {
        group part{.cache = cache.get(),
                   .rows = {{0, 1, {&token, 1}}},
                   .scorer = scorer.for_cache(*cache)};
        auto const all = engine.step({&part, 1});
        REQUIRE(all.size() == static_cast<std::size_t>(model.weights.vocabulary));
        keep(all, all.size(), logits);
      }
      CHECK(difference(logits, full) < 1e-5);
      CHECK(cache->kept(0, 0, 0).size() == 8);
      CHECK(cache->rebuild_cost().entered > 0);
    }
  }
}

TEST_CASE("policies in one batch do not see each other") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t text = random_text(60, 11);
  std::vector<std::string> texts = every_policy_text();
  std::vector<std::unique_ptr<adore::any_cache>> caches;
  std::vector<logits_t> together(texts.size());
  std::vector<std::unique_ptr<test_scorer>> scorers;
  for (std::string const& policy : texts) {
    caches.push_back(cache_for(engine, {.policy = policy, .budget = 8}));
    scorers.push_back(std::make_unique<test_scorer>(model.weights));
  }
  for (std::size_t t = 0; t < text.size(); ++t) {
    std::vector<group> groups;
    for (std::size_t i = 0; i < caches.size(); ++i) {
      groups.push_back({.cache = caches[i].get(),
                        .rows = {{0, 1, {&text[t], 1}}},
                        .scorer = scorers[i]->for_cache(*caches[i])});
    }
    logits_t all;
    keep(engine.step(groups), static_cast<std::size_t>(model.weights.vocabulary), all);
    for (std::size_t i = 0; i < all.size(); ++i) together[i].push_back(all[i]);
  }
  for (std::size_t i = 0; i < texts.size(); ++i) {
    CAPTURE(texts[i]);
    CHECK(difference(together[i], alone(engine, {.policy = texts[i], .budget = 8}, text)) < 1e-5);
  }
}

TEST_CASE("results do not depend on the number of threads") {
  // odd sizes, so that the threads' parts of a matrix differ
  tiny_shape const shape{.width = 36,
                         .hidden = 51,
                         .vocabulary = 67,
                         .channels = 10,
                         .rope_channels = 10,
                         .tied = false};
  loaded_model const model(shape);
  tokens_t const text = random_text(40, 12, shape.vocabulary);
  std::vector<std::string> const policies = {"keep_all", "h2o", "tova", "streaming_llm"};
  std::vector<logits_t> first;
  for (int const threads : {1, 2, 3}) {
    CAPTURE(threads);
    engine engine(model.weights, threads);
    std::vector<std::unique_ptr<adore::any_cache>> caches;
    for (std::string const& policy : policies) {
      caches.push_back(cache_for(engine, {.policy = policy, .budget = 8, .rows = 2}));
    }
    logits_t together;  // batches of several tokens
    for (std::size_t t = 0; t < text.size(); ++t) {
      std::vector<group> groups;
      for (auto const& cache : caches) {
        groups.push_back(
            {.cache = cache.get(),
             .rows = {{0, 1, {&text[t], 1}}, {1, 1, {&text[text.size() - 1 - t], 1}}}});
      }
      keep(engine.step(groups), static_cast<std::size_t>(model.weights.vocabulary), together);
    }
    logits_t const single = alone(engine, {.policy = "h2o", .budget = 8}, text);
    if (threads == 1) {
      first = {together, single};
    } else {
      CHECK(difference(together, first[0]) < 1e-5);
      CHECK(difference(single, first[1]) < 1e-5);
    }
  }
}

TEST_CASE("a token that the model lacks is refused, and harms nothing") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t const text = random_text(5, 14);
  auto const cache = cache_for(engine, {});
  for (std::int32_t const wrong : {-1, 64, 1'000'000}) {
    CHECK_THROWS_AS(alone(engine, *cache, 0, {wrong}), std::invalid_argument);
  }
  CHECK(difference(alone(engine, *cache, 0, text), alone(engine, {}, text)) < 1e-6);
}

TEST_CASE("every policy runs at a budget of 8 and keeps to it") {
  loaded_model const model;
  engine engine(model.weights, 1);
  tokens_t text = random_text(60, 13);
  for (std::size_t t = 3; t < text.size(); t += 9) text[t] = 1;  // spans for sentinel
  for (std::size_t t = 8; t < text.size(); t += 9) text[t] = 2;
  int bounded = 0;
  for (std::string const& policy : every_policy_text()) {
    for (bool const with_prompt : {false, true}) {
      CAPTURE(policy);
      CAPTURE(with_prompt);
      adore::index_t const prompt = with_prompt ? 20 : 0;
      adore::index_t budget = 0;
      adore::with_policy(policy, 8, [&](auto const& made) { budget = made.budget(); });
      bool const holds = budget != adore::unbounded;
      if (holds) CHECK(budget == 8);
      bounded += holds ? 1 : 0;

      auto const cache = cache_for(engine, {.policy = policy, .budget = 8, .prompt = prompt});
      test_scorer scorer(model.weights);
      std::size_t largest_kept = 0;
      auto const look = [&] {
        for (int layer = 0; layer < model.weights.layers; ++layer) {
          for (int head = 0; head < model.weights.kv_heads; ++head) {
            auto const kept = cache->kept(0, layer, head);
            largest_kept = std::max(largest_kept, kept.size());
            REQUIRE(std::is_sorted(kept.begin(), kept.end()));
            REQUIRE(std::adjacent_find(kept.begin(), kept.end()) == kept.end());
          }
        }
      };
      if (with_prompt) {
        group part{.cache = cache.get(),
                   .rows = {{0, prompt, std::span<std::int32_t const>(text).first(20)}},
                   .is_prompt = true,
                   .scorer = scorer.for_cache(*cache)};
        for (float const logit : engine.step({&part, 1})) REQUIRE(std::isfinite(logit));
        look();
      }
      int records = 0;
      for (std::size_t t = with_prompt ? 20 : 0; t < text.size(); ++t) {
        group part{.cache = cache.get(),
                   .rows = {{0, 1, {&text[t], 1}}},
                   .scorer = scorer.for_cache(*cache)};
        part.watch = [&](adore::attention_record const& seen) {
          ++records;
          float sum = 0.0F;
          for (float const weight : seen.weights) sum += weight;
          REQUIRE(std::abs(sum - 2.0F) < 1e-4F);  // one per query head of the KV head
          REQUIRE(seen.weights.size() == seen.positions.size());
          if (holds) REQUIRE(seen.positions.size() <= 9);  // and the new token
        };
        for (float const logit : engine.step({&part, 1})) REQUIRE(std::isfinite(logit));
        look();
      }
      CHECK(records == (60 - prompt) * model.weights.layers * model.weights.kv_heads);
      if (holds) CHECK(largest_kept == 8);
      if (policy.starts_with("keep_all")) CHECK(largest_kept == 60);
    }
  }
  CHECK(bounded == 2 * 15);  // not keep_all, sentinel, and three that only mask
}
