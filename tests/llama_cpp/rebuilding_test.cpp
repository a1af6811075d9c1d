// SPDX-License-Identifier: Apache-2.0
// Released tokens that come back in llama.cpp by a mask of ours: against llama.cpp with nothing
// released, and against the example engine. One case runs on a GPU, one of two_devices_test.cpp on
// two; llama.cpp must know them:
//
//   cmake -S llama.cpp -B build-llama -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON
//     -DCMAKE_CUDA_ARCHITECTURES=90 -DBUILD_SHARED_LIBS=ON -DCMAKE_INSTALL_RPATH='$ORIGIN'
//     -DCMAKE_INSTALL_PREFIX=$PWD/llama && cmake --build build-llama -t install
//   cmake -S adore -B build -G Ninja -DADORE_LLAMA=ON -DADORE_TESTS=ON -DADORE_EXAMPLES=OFF
//     -DADORE_CUDA=OFF -DCMAKE_PREFIX_PATH=$PWD/llama
//     && cmake --build build -t adore_llama_cpp_tests
//   NVIDIA_TF32_OVERRIDE=0 build/tests/adore_llama_cpp_tests -tc="*GPU*"
#include "controller/random_controller.hpp"
#include "full_distance.hpp"
#include "gpus.hpp"
#include "llama/engine.hpp"
#include "llama_cpp/word_embeddings.hpp"
#include "loaded_model.hpp"
#include "support/complaint.hpp"
#include "support/test_data.hpp"
#include <adore/rebuild_text.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace llama_cpp_example;
using namespace llama_cpp_example::testing;
using adore::index_t;
using adore::testing::check_contains;
using adore::testing::complaint_of;

/// Random numbers as a controller, which looks at the newest token, over a file's embeddings.
struct random_scoring {
  word_embeddings words;
  adore::controller controller;
  llama_example::token_scorer scorer;

  explicit random_scoring(std::string const& path, index_t outputs = 1)
      : words(path),
        controller(weights(words.width(), outputs)),
        scorer(
            controller,
            words.width(),
            [this](index_t id, std::span<float> embedding) { words.read(id, embedding); },
            1) {}
  random_scoring(random_scoring const&) = delete;
  random_scoring& operator=(random_scoring const&) = delete;

  static adore::controller_weights weights(int width, index_t outputs) {
    std::mt19937 random(3);
    adore::controller_options options;
    options.mode = adore::score_mode::query_conditioned;
    return adore::testing::random_controller(random, options, width, 8, outputs);
  }
};

decoder_options rebuilding(std::string const& policy, index_t count, index_t chunk = 1) {
  decoder_options options = exact(policy, chunk);
  options.rebuild.count = count;
  return options;
}

std::string complaint_about(loaded_model const& model, decoder_options const& options) {
  return complaint_of([&] { decoder const engine(model.weights.get(), options); });
}

constexpr char const* scored = "adaptive_release(keep=40,recent=8,sinks=2)";

}  // namespace

TEST_CASE("if all released tokens come back, logits are those of a cache that lost nothing") {
  loaded_model const model;
  tokens_t const text = random_text(100, 3);
  double largest = 0.0;
  for (std::string const policy : {scored, "h2o(heavy=20,recent=20)", "sliding_window(size=40)"}) {
    for (index_t const chunk : {1, 5}) {
      CAPTURE(policy);
      CAPTURE(chunk);
      random_scoring scores(model.path);
      decoder_options options = rebuilding(policy, 60, chunk);
      options.scorer = &scores.scorer;
      if (policy != scored) options.scorer = nullptr;
      auto const found = compare_with_full(model.weights.get(), options, text);
      CHECK(found.same_shape < 1e-3);
      CHECK(found.rebuilt >= 1770 / static_cast<std::size_t>(chunk) - 60);  // 1 + 2 + ... + 59
      largest = std::max(largest, found.same_shape);
    }
  }
  MESSAGE("largest difference of a logit: " << largest);
}

TEST_CASE("all released tokens come back under flash attention too, whose mask is of halves") {
  loaded_model const model;
  decoder_options options = rebuilding("sliding_window(size=40)", 60);
  options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  tokens_t const text = random_text(100, 3);
  auto const found = compare_with_full(model.weights.get(), options, text);
  CAPTURE(found.own_noise);
  // it rounds sums to halves, in other places for a batch of another length, and what comes back is
  // computed in longer ones than at first
  CHECK(found.same_shape < 1e-3 + 4.0 * found.own_noise);
  CHECK(found.own_noise < 0.02);
  options.rebuild.count = 0;  // and what the bound is worth
  CHECK(compare_with_full(model.weights.get(), options, text).same_shape > 0.1);
}

TEST_CASE("what comes back on a GPU sees there what it should") {
  if (all_gpus().empty()) return adore::testing::skip("llama.cpp's list of devices has no GPU");
  tiny_shape tensor_cores;
  tensor_cores.channels = tensor_cores.rope_channels = 64;
  tokens_t const text = random_text(100, 3);
  for (bool const rounds : {false, true}) {
    loaded_model const model(rounds ? tensor_cores : whole_float32(), 99);
    for (auto const flash : {LLAMA_FLASH_ATTN_TYPE_DISABLED, LLAMA_FLASH_ATTN_TYPE_ENABLED}) {
      bool const halves = flash == LLAMA_FLASH_ATTN_TYPE_ENABLED;
      decoder_options options = rebuilding("sliding_window(size=40)", 60);
      options.flash_attention = flash;
      if (halves) options.cache_type = GGML_TYPE_F16;
      auto const found = compare_with_full(model.weights.get(), options, text);
      std::string const how =
          std::string(rounds ? "tensor cores" : "float32") + (halves ? ", flash attention" : "");
      MESSAGE(how << ": " << found.same_shape << ", between batch lengths " << found.own_noise);
      if (!rounds && !halves) {
        CAPTURE(tf32_override());
        CHECK(found.same_shape < 1e-3);
      } else {
        // what comes back rounds to another half here and there, whatever the length of the batch
        CHECK(found.same_shape < (halves ? 0.01 : 1e-3) + 4.0 * found.own_noise);
      }
      options.rebuild.count = 0;
      CHECK(compare_with_full(model.weights.get(), options, text).same_shape >
            10.0 * found.same_shape);
    }
  }
}

TEST_CASE("with fewer that come back, kept sets and logits are those of the example engine") {
  loaded_model const model;
  llama_example::model const weights = llama_example::read_model(model.path);
  tokens_t const text = random_text(130, 5);
  for (std::string const policy : {scored, "h2o(heavy=20,recent=20)"}) {
    for (std::string const mask : {"position_causal", "row_causal", "none"}) {
      CAPTURE(policy);
      CAPTURE(mask);
      random_scoring scores(model.path);
      decoder_options options = exact(policy);
      options.rebuild = adore::rebuild_of("rebuild(count=7,mask=" + mask + ")");
      if (policy == scored) options.scorer = &scores.scorer;
      decoder plugin(model.weights.get(), options);

      llama_example::engine engine(weights, 1);
      random_scoring other_scores(model.path);
      adore::cache_options of_cache = engine.cache_options();
      of_cache.reach = adore::scope::model;
      of_cache.rebuild = options.rebuild;
      auto const cache = engine.make_cache(policy, {.rows = 1, .tokens = 130}, of_cache);
      cache->open(0, 0);
      double largest = 0.0;
      for (llama_token const token : text) {
        llama_example::group part{.cache = cache.get(), .rows = {{0, 1, {&token, 1}}}};
        if (policy == scored) part.scorer = &other_scores.scorer;
        auto const wanted = engine.step({&part, 1});
        largest = std::max(largest, difference(plugin.feed({&token, 1}), wanted));
        REQUIRE(plugin.kept() == cache->kept(0, 0, 0));
      }
      CHECK(largest < 1e-3);
      CHECK(plugin.rebuilt() == cache->rebuild_cost().computed);
      CHECK(plugin.rebuilt() > 500);
    }
  }
}

TEST_CASE("a real quantised model differs no more than between batch lengths if all come back") {
  auto const path = adore::testing::test_model();
  if (!path) return adore::testing::skip("no model");
  llama_model_params parameters = llama_model_default_params();
  model_ptr const model(llama_model_load_from_file(path->c_str(), parameters));
  REQUIRE(model != nullptr);
  decoder_options options = rebuilding("adaptive_release(keep=24,recent=8,sinks=2)", 24);
  random_scoring scores(*path);
  random_scoring same_scores(*path);
  options.scorer = &scores.scorer;
  int const vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  tokens_t const text = random_text(48, 3, vocabulary);
  auto const found = compare_with_full(model.get(), options, text);
  options.rebuild.count = 0;
  options.scorer = &same_scores.scorer;
  double const lost = compare_with_full(model.get(), options, text).same_shape;
  MESSAGE("largest difference of a logit: all come back "
          << found.same_shape << ", between batch lengths " << found.own_noise
          << ", none come back " << lost);
  CHECK(found.same_shape < 1e-3 + 4.0 * found.own_noise);
  CHECK(found.same_shape < 0.5 * lost);
}

TEST_CASE("what cannot come back is refused by a sentence") {
  loaded_model const model;
  random_scoring scores(model.path);
  auto options = rebuilding(scored, 7);
  check_contains(complaint_about(model, options), "there is no controller");
  random_scoring two_outputs(model.path, 2);
  options.scorer = &two_outputs.scorer;
  check_contains(complaint_about(model, options), "take a controller with one output");
  options.scorer = &scores.scorer;
  options.rebuild.schedule = adore::on_entry{};
  check_contains(complaint_about(model, options), "the schedule must be every_step");
  options.rebuild = {.count = 7, .admit = adore::rebuild_admission::compete};
  check_contains(complaint_about(model, options), "admit must be never");
  check_contains(complaint_about(model, rebuilding("streaming_llm(sinks=4,window=16)", 7)),
                 "positions must be original");
  check_contains(complaint_about(model, rebuilding("sliding_window(size=250)", 7)),
                 "and 7 for tokens that come back");
  options = rebuilding("sliding_window(size=4)", 300);
  options.cells = 512;
  check_contains(complaint_about(model, options), "a sequence of its own");
  check_contains(complaint_about(model, rebuilding("", 7)), "nothing is released without a policy");
  llama_example::testing::write_content(model.folder.file("other.gguf"), "no model");
  CHECK_THROWS_WITH_AS(word_embeddings(model.folder.file("other.gguf")),
                       doctest::Contains("cannot be read as GGUF"),
                       std::runtime_error);
}

TEST_CASE("embeddings are those of the file, row by row") {
  loaded_model const model;
  word_embeddings words(model.path);
  auto const& table = model.numbers.tensor("token_embd.weight");
  REQUIRE(words.width() == table.columns);
  std::vector<float> row(static_cast<std::size_t>(table.columns));
  for (int const id : {63, 0, 17}) {
    words.read(id, row);
    for (int c = 0; c < table.columns; ++c) {
      CHECK(double{row[static_cast<std::size_t>(c)]} == table.at(id, c));
    }
  }
  CHECK_THROWS_WITH_AS(
      words.read(64, row), doctest::Contains("none is number 64"), std::runtime_error);
  auto const path = adore::testing::test_model();
  if (!path) return;
  llama_example::model const whole = llama_example::read_model(*path);
  word_embeddings quantised(*path);
  row.resize(static_cast<std::size_t>(whole.width));
  for (int const id : {0, 1000, whole.vocabulary - 1}) {
    quantised.read(id, row);
    CHECK(std::equal(
        row.begin(), row.end(), whole.embedding.data.begin() + std::ptrdiff_t{id} * whole.width));
  }
}
