// SPDX-License-Identifier: Apache-2.0
// The controller on the device gives the scores of the host's.
#include "adore/controller/controller.hpp"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/device_controller.cuh"
#include "adore/gpu/device_ledger.cuh"
#include "adore/policies/adaptive_release.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace adore;

controller_weights random_weights(controller_options options, index_t outputs) {
  controller_weights weights;
  weights.options = options;
  weights.inputs = 40;
  weights.hidden = 48;
  weights.outputs = outputs;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0F, 0.2F);
  controller_weights::tensors(
      weights, [&](std::string const&, auto& values, auto const& shape, bool needed) {
        std::size_t size = needed ? 1 : 0;
        for (index_t const length : shape) size *= static_cast<std::size_t>(length);
        values.resize(size);
        for (float& x : values) x = normal(random);
      });
  return weights;
}

/// A controller that hears the rows of a ledger, and what it is given of the vocabulary.
struct heard_rows {
  static constexpr index_t vocabulary = 30, rows = 3;
  index_t tokens;
  controller_weights weights;
  std::vector<float> embeddings;
  gpu::device_buffer<float> on_device;
  gpu::device_ledger<adaptive_release> ledger{
      {.keep = 8, .recent = 1, .sinks = 1}, {rows, 1, 1, 9, 64}, scope::model};
  gpu::device_controller device;

  heard_rows(controller_options options, index_t outputs, index_t longest, std::mt19937& random)
      : tokens(longest),
        weights(random_weights(options, outputs)),
        embeddings(random_embeddings(weights.inputs, random)),
        on_device(std::span<float const>(embeddings)),
        device(weights, on_device.data(), vocabulary, rows, tokens) {}

  void step(std::vector<index_t> const& ids) {
    gpu::device_buffer<index_t> const of_step{std::span<index_t const>(ids)};
    device.step_async(nullptr, ledger.view(), of_step.data());
  }
  /// [row, output, token]
  std::vector<float> logits() const {
    std::vector<float> copy(static_cast<std::size_t>(rows * weights.outputs * tokens));
    gpu::check(cudaMemcpy(
        copy.data(), device.scores().logits, copy.size() * sizeof(float), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  static std::vector<float> random_embeddings(index_t inputs, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0F, 1.0F);
    std::vector<float> all(static_cast<std::size_t>(vocabulary * inputs));
    for (float& x : all) x = normal(random);
    return all;
  }
};

/// Rows take part in some steps only; one begins anew.
void compare(controller_options options, index_t outputs) {
  CAPTURE(std::string(word_of(options.gru)));
  CAPTURE(std::string(word_of(options.mode)));
  constexpr index_t rows = heard_rows::rows;
  constexpr index_t tokens = 100;
  std::mt19937 random(6);
  heard_rows heard(options, outputs, tokens, random);
  controller_weights const& weights = heard.weights;
  auto& ledger = heard.ledger;
  controller const host(weights);
  std::vector<controller_state> states(rows, host.start());
  for (index_t row = 0; row < rows; ++row) ledger.open_async(nullptr, row);
  float largest = 0.0F;
  for (index_t n = 0; n < 80; ++n) {
    std::vector<index_t> ids, counts;
    for (index_t row = 0; row < rows; ++row) {
      ids.push_back(static_cast<index_t>(random() % heard_rows::vocabulary));
      counts.push_back(row == 1 ? n % 2 : 1);
    }
    if (n == 50) {
      states[2] = host.start();
      ledger.open_async(nullptr, 2);
    }
    ledger.set_counts(nullptr, counts);
    heard.step(ids);
    std::vector<float> const logits = heard.logits();
    gpu::advance_async(nullptr, ledger.view());
    for (index_t row = 0; row < rows; ++row) {
      auto const r = static_cast<std::size_t>(row);
      if (counts[r] == 0) continue;
      std::span<float const> const x(
          heard.embeddings.data() + std::ptrdiff_t{ids[r]} * weights.inputs,
          static_cast<std::size_t>(weights.inputs));
      std::vector<float> expected(static_cast<std::size_t>(outputs));
      bool const dynamic = options.rescores();
      if (dynamic) {
        host.hear(states[r], x);
        expected.resize(static_cast<std::size_t>(outputs * states[r].count));
        host.score(states[r], expected);
      } else {
        host.hear(states[r], x, expected);
      }
      index_t const seen = dynamic ? states[r].count : 1;
      for (index_t o = 0; o < outputs; ++o) {
        for (index_t i = 0; i < seen; ++i) {
          index_t const token = dynamic ? i : states[r].count - 1;
          float const here = logits[static_cast<std::size_t>((row * outputs + o) * tokens + token)];
          float const there = expected[static_cast<std::size_t>(o * seen + i)];
          largest = std::max(largest, std::abs(here - there));
          REQUIRE(std::abs(here - there) < 1e-5F * (1.0F + std::abs(there)));
        }
      }
    }
  }
  MESSAGE("largest difference of a logit: " << largest);
}

TEST_CASE("the device hears and scores as the host does, in every mode") {
  using enum score_mode;
  for (gru_form const form : {gru_form::pytorch, gru_form::cho, gru_form::none}) {
    compare({.gru = form}, 1);
    compare({.gru = form, .mode = query_conditioned}, 1);
  }
  compare({.input = input_scaling::rms}, 5);
  compare({.position = position_feature::log1p}, 1);
  compare({.mode = distance, .position = position_feature::distance}, 2);
  compare({.mode = index_over_length, .position = position_feature::index_over_length}, 1);
  compare({.mode = bilinear, .input = input_scaling::rms}, 3);
  compare({.mode = query_conditioned, .position = position_feature::distance}, 4);
}

TEST_CASE("a row that is forked is scored as the one that it is a fork of") {
  constexpr index_t outputs = 2, tokens = 40;
  for (score_mode const mode :
       {score_mode::static_score, score_mode::query_conditioned, score_mode::bilinear}) {
    CAPTURE(std::string(word_of(mode)));
    std::mt19937 random(8);
    heard_rows heard({.mode = mode}, outputs, tokens, random);
    heard.ledger.open_async(nullptr, 0);
    for (index_t n = 0; n < 20; ++n) {
      if (n == 12) {
        heard.ledger.fork_async(nullptr, 0, 2);
        heard.device.fork_async(nullptr, 0, 2);
      }
      auto const id = static_cast<index_t>(random() % heard_rows::vocabulary);
      heard.step({id, 0, id});
      gpu::advance_async(nullptr, heard.ledger.view());
    }
    std::vector<float> const logits = heard.logits();
    auto const of_row = [&](index_t row) {
      auto const begin = logits.begin() + static_cast<std::ptrdiff_t>(row * outputs * tokens);
      return std::vector<float>(begin, begin + outputs * tokens);
    };
    CHECK(of_row(2) == of_row(0));
    CHECK(of_row(1) != of_row(0));
  }
}

TEST_CASE("steps that a controller would not hear whole are refused") {
  controller_weights const weights = random_weights({}, 1);
  std::vector<float> const embeddings(static_cast<std::size_t>(weights.inputs));
  gpu::device_buffer<float> const on_device{std::span<float const>(embeddings)};
  gpu::device_controller device(weights, on_device.data(), 1, 2, 8);
  adaptive_release const policy{.keep = 4, .recent = 1, .sinks = 1};
  gpu::device_ledger<adaptive_release> drafts(policy, {2, 1, 1, 9, 64}, scope::model, 4);
  CHECK_THROWS_AS(device.step_async(nullptr, drafts.view(), nullptr), std::logic_error);
  gpu::device_ledger<adaptive_release> fewer(policy, {1, 1, 1, 9, 64}, scope::model);
  CHECK_THROWS_AS(device.step_async(nullptr, fewer.view(), nullptr), std::logic_error);
}

TEST_CASE("a bidirectional controller is refused on the device") {
  controller_weights const weights = random_weights({.mode = score_mode::bidirectional}, 1);
  std::string said;
  try {
    gpu::device_controller const device(weights, static_cast<float const*>(nullptr), 1, 1, 1);
  } catch (std::invalid_argument const& error) {
    said = error.what();
  }
  CHECK(said.find("runs on the host only") != std::string::npos);
}

}  // namespace
