// SPDX-License-Identifier: Apache-2.0
// The plug-in on tiny random models: against llama.cpp alone, against a naive model with the
// literal policies, and over many tokens.
#include "llama_cpp/decoder.hpp"

#include "loaded_model.hpp"
#include "naive_retention.hpp"
#include "support/complaint.hpp"
#include "support/literal_model.hpp"
#include "support/test_data.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>

namespace {

using namespace llama_cpp_example;
using namespace llama_cpp_example::testing;
using adore::index_t;
using adore::testing::check_contains;
using adore::testing::complaint_of;

llama_token likeliest(std::span<float const> logits) {
  return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// 40 tokens written after a prompt, with all logits, by whatever has `feed`.
template <class Engine>
std::vector<std::vector<float>> written(Engine& engine, tokens_t const& prompt) {
  std::vector<std::vector<float>> all;
  tokens_t next = prompt;
  while (all.size() < 40) {
    auto const logits = engine.feed(next);
    all.emplace_back(logits.begin(), logits.end());
    next = {likeliest(logits)};
  }
  return all;
}

/// Runs llama.cpp and the naive model side by side; returns the largest difference of a logit.
double compare_with_naive(loaded_model const& model,
                          decoder_options const& options,
                          literal::lane const& policy,
                          std::size_t tokens) {
  decoder engine(model.weights.get(), options);
  bool const shifts = engine.positions() == adore::position_scheme::cache_index;
  naive_retention naive(model.numbers, policy, shifts ? options.shift_every : 0);
  tokens_t const text = random_text(tokens, 5);
  double largest = 0.0;
  auto const chunk = static_cast<std::size_t>(options.chunk);
  for (std::size_t begin = 0; begin < text.size(); begin += chunk) {
    CAPTURE(begin);
    auto const first = text.begin() + static_cast<std::ptrdiff_t>(begin);
    tokens_t const part(first,
                        first + static_cast<std::ptrdiff_t>(std::min(chunk, text.size() - begin)));
    auto const logits = engine.feed(part);
    naive_vector const wanted = naive.step(part);
    REQUIRE(engine.kept() == naive.kept());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      largest = std::max(largest, std::abs(double{logits[i]} - wanted[i]));
    }
  }
  CHECK(engine.released() == text.size() - engine.kept().size());
  return largest;
}

std::string complaint_about(loaded_model const& model, decoder_options const& options) {
  return complaint_of([&] { decoder const engine(model.weights.get(), options); });
}

}  // namespace

TEST_CASE("with room for everything the logits are those of llama.cpp, bit by bit") {
  loaded_model const model;
  tokens_t const prompt = random_text(90, 3);
  for (auto const flash : {LLAMA_FLASH_ATTN_TYPE_DISABLED, LLAMA_FLASH_ATTN_TYPE_ENABLED}) {
    for (index_t const chunk : {1, 32}) {
      for (std::string const policy : {"keep_all",
                                       "sliding_window(size=200)",
                                       "streaming_llm(sinks=4,window=196)",
                                       "h2o(heavy=100,recent=100)",
                                       "tova(size=200)"}) {
        if (flash == LLAMA_FLASH_ATTN_TYPE_ENABLED && policy[0] != 'k' && policy[0] != 's') {
          continue;  // these need weights
        }
        CAPTURE(policy);
        CAPTURE(chunk);
        decoder_options options = exact(policy, chunk);
        options.cache_type = GGML_TYPE_F16;
        options.flash_attention = flash;
        plain_llama alone(model.weights.get(), options);
        decoder with_policy(model.weights.get(), options);
        REQUIRE(written(with_policy, prompt) == written(alone, prompt));
        CHECK(with_policy.released() == 0);
      }
    }
  }
}

TEST_CASE("kept sets and logits are those of a naive model under the literal policies") {
  loaded_model const model;
  for (index_t const chunk : {1, 7}) {
    CAPTURE(chunk);
    CHECK(compare_with_naive(model,
                             exact("sliding_window(size=20)", chunk),
                             literal::lane(literal::sliding_window(20)),
                             150) < 1e-3);
    auto original = exact("streaming_llm(sinks=4,window=16)", chunk);
    original.positions = adore::position_scheme::original;
    CHECK(compare_with_naive(model, original, literal::lane(literal::streaming_llm(4, 16)), 150) <
          1e-3);
    CHECK(compare_with_naive(model,
                             exact("h2o(heavy=12,recent=8)", chunk),
                             literal::lane(literal::h2o(12, 8)),
                             400) < 1e-3);
    CHECK(compare_with_naive(model,
                             exact("tova(size=20,protect_newest=true)", chunk),
                             literal::lane(literal::tova(20, true)),
                             400) < 1e-3);
  }
}

TEST_CASE("cache-index positions are those of the naive model, shifted at once or in strides") {
  loaded_model const model;
  for (index_t const stride : {1, 8}) {
    CAPTURE(stride);
    auto options = exact("streaming_llm(sinks=4,window=16)");
    options.shift_every = stride;
    CHECK(compare_with_naive(model, options, literal::lane(literal::streaming_llm(4, 16)), 200) <
          1e-3);
    options.policy = "h2o(heavy=12,recent=8)";  // gaps all over
    options.positions = adore::position_scheme::cache_index;
    CHECK(compare_with_naive(model, options, literal::lane(literal::h2o(12, 8)), 200) < 1e-3);
    decoder counted(model.weights.get(), options);
    counted.feed(random_text(100, 5));
    CHECK(counted.shifts() == (80 - 1) / stride);  // the last gap is closed by the next step
    CHECK(counted.shifting_steps().count == counted.shifts());
  }
}

TEST_CASE("weights have a sum of one per head and lie where a token is") {
  loaded_model const model;
  decoder engine(model.weights.get(), exact("h2o(heavy=12,recent=8)", 3));
  std::vector<index_t> layers;
  std::vector<index_t> seen;  // cells with a weight, per row
  engine.watch([&](index_t layer, adore::token_view<float const> weights) {
    layers.push_back(layer);
    for (index_t token = 0; token < weights.tokens; ++token) {
      float const* const row = weights(token, 0);
      float const heads = static_cast<float>(tiny_shape{}.heads);
      float sum = 0.0F;
      for (index_t cell = 0; cell < weights.channels; ++cell) sum += row[cell];
      CHECK(sum == doctest::Approx(heads).epsilon(1e-5));
      seen.push_back(static_cast<index_t>(
          std::count_if(row, row + weights.channels, [](float w) { return w > 0.0F; })));
    }
  });
  engine.feed(random_text(60, 9));
  layers.clear();
  seen.clear();
  engine.feed(random_text(3, 10));
  CHECK(layers == std::vector<index_t>{0, 1});
  CHECK(seen == std::vector<index_t>{21, 22, 23, 21, 22, 23});  // kept, and new ones so far
}

TEST_CASE("weights can be read at each n-th step only") {
  loaded_model const model;
  auto options = exact("h2o(heavy=12,recent=8)");
  options.scores_every = 4;
  decoder engine(model.weights.get(), options);
  int read = 0;
  engine.watch([&](index_t, adore::token_view<float const>) { ++read; });
  engine.feed(random_text(100, 4));
  CHECK(read == 25 * 2);  // of 2 layers
  auto const kept = engine.kept();
  CHECK(kept.size() == 20);
  for (adore::position_t p = 92; p < 100; ++p) CHECK(kept[static_cast<std::size_t>(p - 80)] == p);
}

TEST_CASE("what cannot be is refused by a sentence") {
  loaded_model const model;
  auto options = exact("h2o(heavy=12,recent=8)");
  options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  check_contains(complaint_about(model, options), "flash attention computes none");
  options = exact("tova(size=20)");
  options.scores_every = 2;
  check_contains(complaint_about(model, options), "must be read at each step");
  options = exact("sliding_window(size=256)");
  check_contains(complaint_about(model, options), "keeps 256 tokens");
  options = exact("key_norm");
  check_contains(complaint_about(model, options), "llama.h does not show");
  options = exact("snapkv");
  check_contains(complaint_about(model, options), "selects once from a whole prompt");
  options = exact("sparse_transformer");
  check_contains(complaint_about(model, options), "hides tokens");
  options = exact("dynamic_top_k");
  check_contains(complaint_about(model, options), "chooses keys inside the attention");
  options = exact("sentinel(open=1,close=2)");
  check_contains(complaint_about(model, options), "a model trained for it");
}

TEST_CASE("a cache that may release nothing says so when it is full") {
  loaded_model const model;
  decoder engine(model.weights.get(), exact("keep_all"));
  engine.feed(random_text(256, 1));
  CHECK_THROWS_WITH_AS(engine.feed(random_text(1, 1)),
                       doctest::Contains("the 256 cells of the context are taken"),
                       std::runtime_error);
}

TEST_CASE("a policy that would release the newest token must keep it") {
  loaded_model const model;
  decoder engine(model.weights.get(), exact("random_victim(size=20)"));
  tokens_t const text = random_text(200, 8);
  for (std::size_t i = 0; i < text.size(); ++i) {
    engine.feed({&text[i], 1});
    REQUIRE(engine.kept().back() == static_cast<adore::position_t>(i));
  }
  CHECK(engine.kept().size() == 20);
}

TEST_CASE("memory stays flat over many tokens at a fixed budget") {
  auto const resident_pages = [] {
    long all = 0;
    long resident = 0;
    std::ifstream("/proc/self/statm") >> all >> resident;
    return resident;
  };
  if (resident_pages() == 0) return adore::testing::skip("no /proc/self/statm");
  loaded_model const model;
  for (std::string const policy : {"streaming_llm(sinks=4,window=60)", "h2o(heavy=32,recent=32)"}) {
    CAPTURE(policy);
    decoder engine(model.weights.get(), exact(policy));
    std::size_t const bytes = engine.key_value_bytes();
    engine.feed(random_text(1000, 1));
    [[maybe_unused]] long const before = resident_pages();
    engine.feed(random_text(10000, 2));
#ifndef __SANITIZE_ADDRESS__                 // which holds freed memory back
    CHECK(resident_pages() - before < 256);  // 1 MiB
#endif
    CHECK(engine.key_value_bytes() == bytes);
    CHECK(engine.released() == 11000 - 64);
    auto const kept = engine.kept();
    REQUIRE(kept.size() == 64);
    for (std::size_t i = 0; i < 32; ++i) CHECK(kept[32 + i] == 10968 + static_cast<int>(i));
    if (policy[0] == 's')
      CHECK(std::vector(kept.begin(), kept.begin() + 5) ==
            std::vector<adore::position_t>{0, 1, 2, 3, 10940});
  }
}
