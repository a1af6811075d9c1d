// SPDX-License-Identifier: Apache-2.0
// A model whose layers lie on two devices: two RPC servers of this machine, which round as the
// processor does, and two GPUs, where there are two. llama.cpp's scheduler copies inputs, the mask
// among them, once to each device.
#include "full_distance.hpp"
#include "gpus.hpp"
#include "loaded_model.hpp"
#include "local_server.hpp"
#include "support/test_data.hpp"

#include <doctest/doctest.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace {

using namespace llama_cpp_example;
using namespace llama_cpp_example::testing;
using adore::index_t;

/// Six layers: the first four on one device, the others and the output on the other.
tiny_shape six_layers() {
  tiny_shape shape = whole_float32();
  shape.layers = 6;
  return shape;
}

struct run {
  std::vector<std::vector<float>> logits;            // [step]
  std::vector<std::vector<adore::position_t>> kept;  // [step]
  std::size_t masks = 0;                             // of the last step
};

run run_of(llama_model* model, decoder_options const& options, tokens_t const& text) {
  decoder engine(model, options);
  run seen;
  auto const chunk = static_cast<std::size_t>(options.chunk);
  for (std::size_t begin = 0; begin < text.size(); begin += chunk) {
    auto const part = std::span(text).subspan(begin, std::min(chunk, text.size() - begin));
    auto const logits = engine.feed(part);
    seen.logits.emplace_back(logits.begin(), logits.end());
    seen.kept.push_back(engine.kept());
  }
  seen.masks = engine.masks();
  return seen;
}

/// Largest difference of a logit between two runs, whose kept sets must be the same.
double compare(run const& a, run const& b) {
  REQUIRE(a.kept == b.kept);
  double largest = 0.0;
  for (std::size_t i = 0; i < a.logits.size(); ++i) {
    largest = std::max(largest, difference(a.logits[i], b.logits[i]));
  }
  return largest;
}

/// Policies that need nothing, weights, a shift of keys, and a mask.
std::vector<decoder_options> all_ways() {
  std::vector<decoder_options> ways;
  for (index_t const chunk : {1, 7}) {
    for (char const* const policy : {"sliding_window(size=20)",
                                     "h2o(heavy=12,recent=8)",
                                     "streaming_llm(sinks=4,window=16)"}) {
      ways.push_back(exact(policy, chunk));
    }
    ways.push_back(exact("h2o(heavy=12,recent=8)", chunk));
    ways.back().rebuild.count = 5;
  }
  ways.push_back(exact("sliding_window(size=20)"));
  ways.back().rebuild.count = 5;
  ways.back().flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  ways.back().cache_type = GGML_TYPE_F16;
  return ways;
}

bool has_rpc() {
  return ggml_backend_reg_by_name("RPC") != nullptr;
}

/// All that is released comes back, in a model on several devices.
void check_that_nothing_is_lost(llama_model* model) {
  tokens_t const text = random_text(100, 3);
  decoder_options options = exact("h2o(heavy=20,recent=20)");
  options.rebuild.count = 60;
  auto const found = compare_with_full(model, options, text);
  CAPTURE(tf32_override());
  CHECK(found.same_shape < 1e-3);
  CHECK(found.rebuilt == 1770);  // 1 + 2 + ... + 59
  options.rebuild.count = 0;
  CHECK(compare_with_full(model, options, text).same_shape > 0.1);
}

}  // namespace

TEST_CASE("two servers that share the layers keep and compute what the processor alone does") {
  if (!has_rpc()) return adore::testing::skip("this llama.cpp has no RPC");
  local_server const first;
  local_server const second;
  loaded_model const there(six_layers(), 99, {first.device(), second.device()});
  loaded_model const here(six_layers());
  tokens_t const text = random_text(90, 5);
  for (decoder_options const& options : all_ways()) {
    CAPTURE(options.policy);
    CAPTURE(options.chunk);
    CAPTURE(options.rebuild.count);
    run const remote = run_of(there.weights.get(), options, text);
    CHECK(compare(remote, run_of(here.weights.get(), options, text)) == 0.0);
    CHECK(remote.masks == (options.rebuild.count > 0 ? 2 : 0));
  }
}

TEST_CASE("a server that has the last layers only keeps and computes what the processor does") {
  if (!has_rpc()) return adore::testing::skip("this llama.cpp has no RPC");
  local_server const server;
  loaded_model const shared(six_layers(), 3, {server.device()});
  loaded_model const here(six_layers());
  tokens_t const text = random_text(60, 5);
  for (decoder_options const& options : all_ways()) {
    CAPTURE(options.policy);
    CAPTURE(options.chunk);
    CAPTURE(options.rebuild.count);
    run const both = run_of(shared.weights.get(), options, text);
    CHECK(compare(both, run_of(here.weights.get(), options, text)) == 0.0);
    CHECK(both.masks == (options.rebuild.count > 0 ? 2 : 0));
  }
}

TEST_CASE("what comes back sees on each of two servers what it should") {
  if (!has_rpc()) return adore::testing::skip("this llama.cpp has no RPC");
  local_server const first;
  local_server const second;
  loaded_model const model(six_layers(), 99, {first.device(), second.device()});
  check_that_nothing_is_lost(model.weights.get());
}

TEST_CASE("two GPUs that share the layers keep and compute what one of them does") {
  auto const gpus = all_gpus();
  if (gpus.size() < 2) return adore::testing::skip("llama.cpp's list of devices has no two GPUs");
  loaded_model const both(six_layers(), 99, {gpus[0], gpus[1]});
  loaded_model const one(six_layers(), 99, {gpus[0]});
  tokens_t const text = random_text(90, 5);
  double largest = 0.0;
  for (decoder_options const& options : all_ways()) {
    CAPTURE(options.policy);
    CAPTURE(options.chunk);
    CAPTURE(options.rebuild.count);
    run const shared = run_of(both.weights.get(), options, text);
    largest = std::max(largest, compare(shared, run_of(one.weights.get(), options, text)));
    CHECK(largest < 1e-3);
    // one for each GPU; flash attention that llama.cpp was built without on GPUs runs on the
    // processor, from a single one
    CHECK(shared.masks <= 2);
    CHECK((shared.masks > 0) == (options.rebuild.count > 0));
  }
  check_that_nothing_is_lost(both.weights.get());
  MESSAGE("two GPUs beside one: largest difference of a logit " << largest);
}
