// SPDX-License-Identifier: Apache-2.0
// Time of a whole decoding step of a model with random weights: greedy, one graph, all on the
// device.
//   step_bench --shape 7b --sequences 64 --policy h2o --budget 192
//   step_bench --shape '8b(layers=8,width=16384,heads=128,hidden=53248)' --policy h2o
//   step_bench --policy adaptive_release --controller query_conditioned --rebuild
//   'rebuild(count=8)'
#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/device_model.cuh"
#include "llama/gpu/handles.cuh"
#include "llama/gpu/shapes.hpp"
#include <adore/policy_text.hpp>
#include <adore/rebuild_text.hpp>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace on_device = llama_example::gpu;
using on_device::check;

struct request {
  std::string shape = "7b", policy = "sliding_window", type = "bf16", reach = "default";
  std::string controller, rebuild;
  int sequences = 64, budget = 192, tokens = 960, steps = 31;
  bool eager = false;
};

/// A controller of the paper's size with random weights: its time is that of a trained one, its
/// choices are not.
adore::controller_weights random_controller(adore::score_mode mode, int inputs) {
  adore::controller_weights weights;
  weights.options.mode = mode;
  if (mode == adore::score_mode::distance) {
    weights.options.position = adore::position_feature::distance;
  }
  if (mode == adore::score_mode::index_over_length) {
    weights.options.position = adore::position_feature::index_over_length;
  }
  weights.options.input = adore::input_scaling::rms;
  weights.inputs = inputs;
  weights.hidden = 128;
  weights.outputs = 1;
  std::mt19937 random(1);
  adore::controller_weights::tensors(
      weights, [&](std::string const&, auto& values, auto const& shape, bool needed) {
        std::size_t size = needed ? 1 : 0;
        for (adore::index_t const length : shape) size *= static_cast<std::size_t>(length);
        std::normal_distribution<float> normal(0.0F,
                                               1.0F / std::sqrt(static_cast<float>(shape.back())));
        values.resize(size);
        for (float& x : values) x = normal(random);
      });
  return weights;
}

/// Milliseconds of each of the last steps, by the device's clock.
template <class T>
std::vector<float> time_steps(on_device::device_engine<T>& engine, int untimed, int timed) {
  auto const begin = on_device::make_event(cudaEventDefault);
  auto const end = on_device::make_event(cudaEventDefault);
  for (int i = 0; i < untimed; ++i) engine.step_async();
  std::vector<float> milliseconds;
  for (int i = 0; i < timed; ++i) {
    check(cudaEventRecord(begin.get(), engine.stream()));
    engine.step_async();
    check(cudaEventRecord(end.get(), engine.stream()));
    check(cudaEventSynchronize(end.get()));
    milliseconds.push_back(0.0F);
    check(cudaEventElapsedTime(&milliseconds.back(), begin.get(), end.get()));
  }
  return milliseconds;
}

template <class T>
void run(request const& asked) {
  llama_example::model const shape = on_device::shape_of(asked.shape);
  auto const weights = on_device::device_model<T>::random(shape, 1);

  on_device::device_cache_options options;
  if (adore::scope reach{}; asked.reach != "default") {
    if (!adore::detail::read_value(asked.reach, reach)) {
      throw std::invalid_argument("--scope: none of default, model, layer, kv_head");
    }
    options.reach = reach;
  }
  int const longest = asked.tokens + asked.steps;
  std::optional<adore::controller_weights> controller;
  if (!asked.controller.empty()) {
    adore::score_mode mode{};
    if (!adore::detail::read_value(asked.controller, mode)) {
      throw std::invalid_argument("--controller: must be " + adore::detail::choices(mode));
    }
    controller = random_controller(mode, shape.width);
    options.controller = &*controller;
    options.embeddings = weights.embedding().data.data();
    options.vocabulary = shape.vocabulary;
  }
  if (!asked.rebuild.empty()) options.rebuild = adore::rebuild_of(asked.rebuild);
  auto const cache = on_device::make_device_cache<T>(asked.policy,
                                                     {.rows = asked.sequences,
                                                      .layers = shape.layers,
                                                      .kv_heads = shape.kv_heads,
                                                      .channels = shape.channels,
                                                      .tokens = longest,
                                                      .budget = asked.budget},
                                                     options);
  bool const bounded = cache->nominal_budget() != adore::unbounded;
  on_device::device_engine<T> engine(
      weights, {cache.get()}, {.graph = !asked.eager, .greedy = true});
  for (int row = 0; row < asked.sequences; ++row) {
    cache->open_async(engine.stream(), row, static_cast<std::uint64_t>(row));
  }
  std::vector<std::int32_t> ids;  // different ones, so that the sequences differ
  for (int row = 0; row < asked.sequences; ++row) ids.push_back(row % shape.vocabulary);
  engine.set_ids(ids);

  // A cache with a budget is full after so many steps and releases from then on; one without is
  // measured around --tokens. Two more steps warm up and capture.
  // What scores all tokens, or brings them back, depends on the length too.
  bool const has_past = controller.has_value() || !asked.rebuild.empty();
  int const untimed = std::max(
      2, bounded && !has_past ? cache->nominal_budget() + 2 : asked.tokens - (asked.steps + 1) / 2);
  (void)time_steps(engine, untimed, 0);
  adore::rebuild_counts const before = cache->rebuild_cost(engine.stream());
  auto const traffic_before = cache->tier_cost(engine.stream());
  std::vector<float> ms = time_steps(engine, 0, asked.steps);
  adore::rebuild_counts const after = cache->rebuild_cost(engine.stream());
  auto const traffic = cache->tier_cost(engine.stream());
  std::sort(ms.begin(), ms.end());
  float const median = ms[ms.size() / 2];
  if (cache->tokens_without_room(engine.stream()) > 0) throw std::logic_error("out of slots");

  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0));
  double const gigabyte = 1e9;
  std::printf("%s: %s, %s, %d sequences, %s, scope %s, %s\n",
              properties.name,
              asked.shape.c_str(),
              asked.type.c_str(),
              asked.sequences,
              cache->policy().c_str(),
              adore::word_of(cache->reach()),
              asked.eager ? "kernel by kernel" : "one graph");
  std::printf("step %.3f ms (median of %zu; %.3f to %.3f), %.0f tokens/s\n",
              static_cast<double>(median),
              ms.size(),
              static_cast<double>(ms.front()),
              static_cast<double>(ms.back()),
              1e3 * asked.sequences / static_cast<double>(median));
  if (!asked.rebuild.empty()) {
    double const steps = asked.steps;
    std::printf("%s: rows computed again per step %.2f, entering tokens %.2f, waiting %.2f\n",
                asked.rebuild.c_str(),
                static_cast<double>(after.computed - before.computed) / steps,
                static_cast<double>(after.entered - before.entered) / steps,
                static_cast<double>(after.deferred - before.deferred) / steps);
    if (traffic.allocated > 0) {
      std::printf("tier %.3f GB; per step %.3f MB to the host, %.3f MB from it\n",
                  static_cast<double>(traffic.allocated) / gigabyte,
                  static_cast<double>(traffic.to_host - traffic_before.to_host) / 1e6 / steps,
                  static_cast<double>(traffic.from_host - traffic_before.from_host) / 1e6 / steps);
    }
  }
  std::printf("K/V %.3f GB allocated, %.3f GB kept; weights read per step %.3f GB\n",
              static_cast<double>(cache->allocated_bytes()) / gigabyte,
              static_cast<double>(cache->live_bytes(engine.stream())) / gigabyte,
              static_cast<double>(weights.bytes_per_step()) / gigabyte);
}

}  // namespace

int main(int count, char** arguments) {
  request asked;
  CLI::App app{"Time of a whole decoding step on the device, with random weights."};
  app.add_option("--shape",
                 asked.shape,
                 "7b, 8b or 135m, or one of them with other numbers, name(number=value,...): "
                 "layers, width, heads, kv_heads, channels (of a head), hidden (feed-forward), "
                 "vocabulary")
      ->capture_default_str();
  app.add_option("--type", asked.type, "bf16 or float")->capture_default_str();
  app.add_option("--sequences", asked.sequences, "rows of the batch")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--policy", asked.policy, "name or name(field=value,...)")->capture_default_str();
  app.add_option("--budget", asked.budget, "tokens that a lane keeps")->capture_default_str();
  app.add_option("--scope", asked.reach, "default, model, layer or kv_head")->capture_default_str();
  app.add_option("--controller",
                 asked.controller,
                 "score mode of a controller with random weights, for adaptive_release");
  app.add_option("--rebuild", asked.rebuild, "rebuild(count=8,schedule=on_entry,...)");
  app.add_option("--tokens",
                 asked.tokens,
                 "length at which a policy without a budget, or with a past, is measured")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--steps", asked.steps, "timed steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--eager", asked.eager, "launch each kernel anew instead of replaying a graph");
  CLI11_PARSE(app, count, arguments);
  try {
    if (asked.type != "bf16" && asked.type != "float") {
      throw std::invalid_argument("--type: neither bf16 nor float");
    }
    asked.type == "float" ? run<float>(asked) : run<__nv_bfloat16>(asked);
    return 0;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "step_bench: %s\n", error.what());
    return 2;
  }
}
