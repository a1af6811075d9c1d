// SPDX-License-Identifier: Apache-2.0
// The comparison on the device against the host's, on a tiny random model.
#include "comparison.hpp"
#include "device.hpp"
#include "llama/engine.hpp"
#include "llama/tiny_model.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace {

using llama_example::testing::temporary_folder;
using llama_example::testing::tiny_model;

}  // namespace

TEST_CASE("the comparison's table is the same from host and device") {
  temporary_folder const folder;
  tiny_model({.heads = 4, .kv_heads = 2, .channels = 64, .rope_channels = 64})
      .write(folder.file("tiny.gguf"));
  llama_example::model const model = llama_example::read_model(folder.file("tiny.gguf"));

  comparison::request asked;
  asked.tokens = 61, asked.sequences = 2;
  SUBCASE("each policy's own scope") {}
  SUBCASE("scope layer") {
    asked.reach = adore::scope::layer;
  }
  SUBCASE("scope model") {
    asked.reach = adore::scope::model;
  }
  asked.contestants = {{"keep_all", {}},
                       {"sliding_window", 8},
                       {"streaming_llm", 8},
                       {"h2o", 8},
                       {"tova", 16},
                       {"strided(bound=none)", {}},
                       {"sparse_transformer", {}},
                       {"h2o_mask_simulation", 8},
                       {"dynamic_top_k", 8}};
  std::mt19937 random(11);
  std::uniform_int_distribution<std::int32_t> distribution(0, model.vocabulary - 1);
  std::vector<std::vector<std::int32_t>> tokens(2);
  for (auto& sequence : tokens) {
    for (int t = 0; t < asked.tokens; ++t) sequence.push_back(distribution(random));
  }

  llama_example::engine engine(model, 1);
  int reported = 0;
  auto const on_host = comparison::run(asked, engine, tokens, [](int, int) {});
  auto const on_device = comparison::run_on_device(
      asked, model, tokens, [&](int done, int all) { reported = 100 * done / all; });

  CHECK(reported == 100);
  REQUIRE(on_device.size() == on_host.size());
  for (std::size_t i = 0; i < on_host.size(); ++i) {
    comparison::result const& a = on_device[i];
    comparison::result const& b = on_host[i];
    CAPTURE(b.settings);
    CHECK(a.policy == b.policy);
    CHECK(a.settings == b.settings);
    CHECK(a.budget == b.budget);
    CHECK(a.reach == b.reach);
    CHECK(a.perplexity == doctest::Approx(b.perplexity).epsilon(1e-4));
    CHECK(a.perplexity_second_half == doctest::Approx(b.perplexity_second_half).epsilon(1e-4));
    CHECK(a.kl == doctest::Approx(b.kl).epsilon(1e-3));
    CHECK(a.top1 == doctest::Approx(b.top1).epsilon(1e-9));
    CHECK(a.kept_weight == doctest::Approx(b.kept_weight).epsilon(1e-4));
    CHECK(a.kv_bytes == b.kv_bytes);
    CHECK(a.kv_bytes_live == b.kv_bytes_live);
    CHECK_FALSE(a.stage_us_per_token);
    CHECK(a.tokens_per_second > 0.0);
  }
}

TEST_CASE("answers are the same from host and device, whatever the prompts' lengths") {
  temporary_folder const folder;
  tiny_model({.heads = 4, .kv_heads = 2, .channels = 64, .rope_channels = 64})
      .write(folder.file("tiny.gguf"));
  llama_example::model const model = llama_example::read_model(folder.file("tiny.gguf"));

  comparison::request asked;
  asked.answer_tokens = 7, asked.together = 2;
  asked.contestants = {{"keep_all", {}}, {"streaming_llm", 8}, {"h2o", 8}, {"tova", 16}};
  std::mt19937 random(13);
  std::uniform_int_distribution<std::int32_t> distribution(0, model.vocabulary - 1);
  for (int const length : {23, 31, 17}) {
    comparison::retrieval_case& one = asked.cases.emplace_back();
    for (int t = 0; t < length; ++t) one.prompt.push_back(distribution(random));
  }

  llama_example::engine engine(model, 1);
  auto const on_host = comparison::retrieve(asked, engine, [](int, int) {});
  int reported = 0;
  auto const on_device = comparison::retrieve_on_device(
      asked, model, [&](int done, int all) { reported = 100 * done / all; });

  CHECK(reported == 100);
  REQUIRE(on_device.size() == on_host.size());
  for (std::size_t i = 0; i < on_host.size(); ++i) {
    CAPTURE(on_host[i].line.settings);
    CHECK(on_device[i].answers == on_host[i].answers);
    CHECK(on_device[i].line.settings == on_host[i].line.settings);
    CHECK(on_device[i].line.budget == on_host[i].line.budget);
    CHECK(on_device[i].line.kv_bytes == on_host[i].line.kv_bytes);
  }
}
