// SPDX-License-Identifier: Apache-2.0
// The device engine on tiny random models: against the host engine, and against itself without a
// graph, with rows that come and go, in bfloat16.
#include "llama/engine.hpp"
#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/device_model.cuh"
#include "llama/tiny_model.hpp"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

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
#include <type_traits>
#include <vector>

namespace {

namespace on_device = llama_example::gpu;
using adore::scope;
using llama_example::testing::temporary_folder;
using llama_example::testing::tiny_model;
using llama_example::testing::tiny_shape;

// heads wide enough for the device; three query heads per KV head, as SmolLM2 has
constexpr tiny_shape wide_heads{.heads = 6, .kv_heads = 2, .channels = 64, .rope_channels = 64};

llama_example::model load(tiny_shape const& shape) {
  temporary_folder const folder;
  tiny_model(shape).write(folder.file("tiny.gguf"));
  return llama_example::read_model(folder.file("tiny.gguf"));
}

struct choice {
  std::string policy;
  std::optional<scope> reach{};
};

constexpr int rows = 3;
constexpr int steps = 40;
constexpr adore::index_t budget = 8;

/// [token][sequence]: every sequence its own text.
std::vector<std::vector<std::int32_t>> random_text(int vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<std::int32_t> distribution(0, vocabulary - 1);
  std::vector<std::vector<std::int32_t>> text(steps, std::vector<std::int32_t>(rows));
  for (auto& step : text) {
    for (std::int32_t& id : step) id = distribution(random);
  }
  return text;
}

/// Caches of several policies and the engine that has them all in its batch.
template <class T>
struct device_side {
  on_device::device_model<T> weights;
  std::vector<std::unique_ptr<on_device::device_cache<T>>> caches;
  std::unique_ptr<on_device::device_engine<T>> engine;
  int vocabulary;

  device_side(llama_example::model const& model,
              std::vector<choice> const& field,
              on_device::device_engine_options const& options = {})
      : weights(model), vocabulary(model.vocabulary) {
    std::vector<on_device::device_cache<T>*> groups;
    for (choice const& each : field) {
      caches.push_back(on_device::make_device_cache<T>(each.policy,
                                                       {.rows = rows,
                                                        .layers = model.layers,
                                                        .kv_heads = model.kv_heads,
                                                        .channels = model.channels,
                                                        .tokens = steps,
                                                        .budget = budget},
                                                       {.reach = each.reach}));
      groups.push_back(caches.back().get());
    }
    engine = std::make_unique<on_device::device_engine<T>>(weights, groups, options);
    for (auto const& cache : caches) {
      for (int row = 0; row < rows; ++row) open(*cache, row);
    }
  }
  void open(on_device::device_cache<T>& cache, int row) {
    cache.open_async(engine->stream(), row, static_cast<std::uint64_t>(row));
  }

  /// @return logits [row of the batch, vocabulary] after a step of `ids` [sequence] in all groups
  std::vector<float> step(std::vector<std::int32_t> const& ids) {
    std::vector<std::int32_t> of_batch;
    for (std::size_t g = 0; g < caches.size(); ++g) {
      of_batch.insert(of_batch.end(), ids.begin(), ids.end());
    }
    engine->set_ids(of_batch);
    engine->step_async();
    return logits();
  }
  std::vector<float> logits() const {
    std::vector<float> copy(static_cast<std::size_t>(engine->rows()) *
                            static_cast<std::size_t>(vocabulary));
    on_device::check(cudaMemcpyAsync(copy.data(),
                                     engine->logits(),
                                     copy.size() * sizeof(float),
                                     cudaMemcpyDeviceToHost,
                                     engine->stream()));
    on_device::check(cudaStreamSynchronize(engine->stream()));
    return copy;
  }
};

/// Largest difference, relative to the largest logit.
double difference(std::span<float const> a, std::span<float const> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  double scale = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const apart = std::abs(double{a[i]} - double{b[i]});
    REQUIRE(std::isfinite(apart));
    largest = std::max(largest, apart);
    scale = std::max(scale, std::abs(double{b[i]}));
  }
  return largest / scale;
}

/// The host's caches of the same policies.
struct host_side {
  llama_example::engine engine;
  std::vector<std::unique_ptr<adore::any_cache>> caches;

  host_side(llama_example::model const& model, std::vector<choice> const& field)
      : engine(model, 1) {
    for (choice const& each : field) {
      adore::cache_options options = engine.cache_options();
      options.reach = each.reach;
      options.positions = adore::position_scheme::original;
      caches.push_back(engine.make_cache(
          each.policy, {.rows = rows, .tokens = steps, .budget = budget}, options));
      for (int row = 0; row < rows; ++row) {
        caches.back()->open(row, static_cast<std::uint64_t>(row));
      }
    }
  }

  std::span<float const> step(std::vector<std::int32_t> const& ids) {
    std::vector<llama_example::group> groups(caches.size());
    for (std::size_t g = 0; g < caches.size(); ++g) {
      groups[g].cache = caches[g].get();
      for (std::size_t row = 0; row < rows; ++row) {
        groups[g].rows.push_back({static_cast<adore::index_t>(row), 1, {&ids[row], 1}});
      }
    }
    return engine.step(groups);
  }
};

/// Each step of each policy: the logits, and who is kept in each lane.
///
/// The kept sets have to be equal, although host and device round differently: the priorities of
/// two tokens would have to be closer than about 1e-6 to be ranked differently, and in these texts
/// none are.
///
/// @param ids  the text's are below it; 0: all of the vocabulary
void agree(tiny_shape const& shape, std::vector<choice> const& field, int ids = 0) {
  llama_example::model const model = load(shape);
  host_side host(model, field);
  device_side<float> device(model, field);
  auto const text = random_text(ids > 0 ? ids : model.vocabulary, 5);
  auto const per_group =
      static_cast<std::size_t>(rows) * static_cast<std::size_t>(model.vocabulary);
  for (std::size_t t = 0; t < text.size(); ++t) {
    CAPTURE(t);
    std::span<float const> const expected = host.step(text[t]);
    std::vector<float> const logits = device.step(text[t]);
    for (std::size_t g = 0; g < field.size(); ++g) {
      CAPTURE(device.caches[g]->policy());
      CAPTURE(adore::word_of(device.caches[g]->reach()));
      REQUIRE(host.caches[g]->policy() == device.caches[g]->policy());
      REQUIRE(host.caches[g]->reach() == device.caches[g]->reach());
      REQUIRE(difference(std::span(logits).subspan(g * per_group, per_group),
                         expected.subspan(g * per_group, per_group)) < 1e-4);
      for (adore::index_t row = 0; row < rows; ++row) {
        for (adore::index_t layer = 0; layer < model.layers; ++layer) {
          for (adore::index_t head = 0; head < model.kv_heads; ++head) {
            CAPTURE(row);
            CAPTURE(layer);
            CAPTURE(head);
            REQUIRE(device.caches[g]->kept(device.engine->stream(), row, layer, head) ==
                    host.caches[g]->kept(row, layer, head));
          }
        }
      }
    }
  }
  for (std::size_t g = 0; g < field.size(); ++g) {
    CAPTURE(field[g].policy);
    CHECK(device.caches[g]->tokens_without_room(device.engine->stream()) == 0);
    CHECK(device.caches[g]->allocated_bytes() == host.caches[g]->allocated_bytes());
    CHECK(device.caches[g]->live_bytes(device.engine->stream()) == host.caches[g]->live_bytes());
  }
}

/// The bits of two engines' logits through the whole text.
template <class T>
void graph_replays_equal_launches(std::vector<choice> const& field) {
  llama_example::model const model = load(wide_heads);
  device_side<T> replayed(model, field, {.graph = true});
  device_side<T> launched(model, field, {.graph = false});
  for (auto const& ids : random_text(model.vocabulary, 6)) {
    REQUIRE(replayed.step(ids) == launched.step(ids));
  }
}

}  // namespace

TEST_CASE("device and host engine agree: every policy, every scope, in one batch") {
  std::vector<choice> field;
  for (char const* policy : {"keep_all",
                             "sliding_window",
                             "streaming_llm",
                             "strided",
                             "strided_doubling",
                             "h2o",
                             "decayed_h2o",
                             "h2o_per_age",
                             "h2o_algorithm_1",
                             "tova",
                             "key_norm",
                             "random_reservoir",
                             "random_victim",
                             "sparse_transformer",
                             "h2o_mask_simulation",
                             "dynamic_top_k",
                             "dynamic_top_k(agreed=kv_head)"}) {
    for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
      field.push_back({policy, reach});
    }
  }
  field.push_back({"dynamic_top_k(agreed=layer)", scope::layer});
  field.push_back({"dynamic_top_k(agreed=layer,include_self=true)", scope::model});
  agree(wide_heads, field);
}

TEST_CASE("device and host engine agree: a text with sentinels in it, which number its tokens") {
  std::vector<choice> field;
  for (char const* policy : {"sentinel(open=1,close=2)", "sentinel(open=1,close=2,tail=3)"}) {
    for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
      field.push_back({policy, reach});
    }
  }
  agree(wide_heads, field, 6);  // two ids of six are sentinels
}

TEST_CASE("device and host engine agree: models of other shapes") {
  tiny_shape shape = wide_heads;
  SUBCASE("some channels turned, with factors, an output matrix of its own") {
    shape.rope_channels = 32;
    shape.rope_factors = true;
    shape.tied = false;
  }
  SUBCASE("as many KV heads as query heads, three layers") {
    shape.kv_heads = 6, shape.layers = 3;
  }
  SUBCASE("one KV head, heads of 128 channels") {
    shape.kv_heads = 1, shape.channels = 128, shape.rope_channels = 128;
  }
  SUBCASE("eight query heads of one KV head") {
    shape.heads = 8, shape.kv_heads = 1;
  }
  agree(shape, {{"keep_all"}, {"h2o"}});
}

TEST_CASE("a replayed graph gives the bits of kernels launched one by one") {
  SUBCASE("float, groups beside each other") {
    graph_replays_equal_launches<float>({{"keep_all"},
                                         {"h2o"},
                                         {"h2o", scope::model},
                                         {"tova", scope::layer},
                                         {"random_victim"},
                                         {"h2o_mask_simulation"},
                                         {"sentinel(open=1,close=2)"},
                                         {"dynamic_top_k"}});
  }
  SUBCASE("bfloat16, one group") {
    graph_replays_equal_launches<__nv_bfloat16>({{"h2o"}});
  }
}

TEST_CASE("in bfloat16 the logits are near those of float") {
  tiny_shape shape = wide_heads;
  SUBCASE("three query heads per KV head") {}
  SUBCASE("sixteen query heads of one KV head") {
    shape.heads = 16, shape.kv_heads = 1, shape.channels = 128, shape.rope_channels = 128;
  }
  llama_example::model const model = load(shape);
  std::vector<choice> const field{{"keep_all"}, {"sliding_window"}};
  host_side host(model, field);
  device_side<__nv_bfloat16> device(model, field);
  for (auto const& ids : random_text(model.vocabulary, 7)) {
    auto const expected = host.step(ids);
    REQUIRE(difference(device.step(ids), expected) < 0.05);
  }
}

TEST_CASE("rows come and go between replays, and no other row notices") {
  llama_example::model const model = load(wide_heads);
  std::vector<choice> const field{{"h2o"}};
  device_side<float> steady(model, field);
  device_side<float> changing(model, field);
  auto const text = random_text(model.vocabulary, 8);
  auto const vocabulary = static_cast<std::size_t>(model.vocabulary);
  std::vector<std::vector<float>> of_row_1;
  for (std::size_t t = 0; t < text.size(); ++t) {
    CAPTURE(t);
    if (t == 10) changing.caches[0]->close_async(changing.engine->stream(), 1);
    if (t == 15) changing.open(*changing.caches[0], 1);
    auto ids = text[t];
    auto const expected = steady.step(ids);
    of_row_1.emplace_back(expected.begin() + static_cast<std::ptrdiff_t>(vocabulary),
                          expected.begin() + static_cast<std::ptrdiff_t>(2 * vocabulary));
    if (t >= 15) ids[1] = text[t - 15][1];  // the same text once more, from its beginning
    auto const logits = changing.step(ids);
    auto const row = [&](std::vector<float> const& of, std::size_t which) {
      return std::vector<float>(of.begin() + static_cast<std::ptrdiff_t>(which * vocabulary),
                                of.begin() + static_cast<std::ptrdiff_t>((which + 1) * vocabulary));
    };
    REQUIRE(row(logits, 0) == row(expected, 0));
    REQUIRE(row(logits, 2) == row(expected, 2));
    if (t >= 15) REQUIRE(row(logits, 1) == of_row_1[t - 15]);
  }
}

TEST_CASE("a cache of one row goes on where the row was") {
  llama_example::model const model = load(wide_heads);
  std::vector<choice> const field{{"h2o"}};
  device_side<float> device(model, field);
  auto const text = random_text(model.vocabulary, 9);
  auto const vocabulary = static_cast<std::size_t>(model.vocabulary);
  for (std::size_t t = 0; t < 20; ++t) device.step(text[t]);
  auto const alone = device.caches[0]->alone(device.engine->stream(), 2);
  on_device::device_engine<float> engine(device.weights, {alone.get()});
  for (std::size_t t = 20; t < text.size(); ++t) {
    auto const expected = device.step(text[t]);
    engine.set_ids({&text[t][2], 1});
    engine.step_async();
    std::vector<float> logits(vocabulary);
    on_device::check(cudaMemcpyAsync(logits.data(),
                                     engine.logits(),
                                     vocabulary * sizeof(float),
                                     cudaMemcpyDeviceToHost,
                                     engine.stream()));
    on_device::check(cudaStreamSynchronize(engine.stream()));
    REQUIRE(difference(logits, std::span(expected).subspan(2 * vocabulary)) < 1e-4);
  }
}

TEST_CASE("greedy steps feed themselves with the best token, random weights or not") {
  llama_example::model shape;
  shape.width = 64, shape.layers = 2, shape.heads = 4, shape.kv_heads = 2, shape.channels = 64;
  shape.rope_channels = 64, shape.hidden = 96, shape.vocabulary = 1000;
  auto const weights = on_device::device_model<__nv_bfloat16>::random(shape, 3);
  auto const cache = on_device::make_device_cache<__nv_bfloat16>(
      "sliding_window", {.rows = rows, .layers = 2, .kv_heads = 2, .channels = 64, .budget = 8});
  on_device::device_engine<__nv_bfloat16> engine(weights, {cache.get()}, {.greedy = true});
  for (int row = 0; row < rows; ++row) cache->open_async(engine.stream(), row, 0);
  std::vector<std::int32_t> const first{1, 2, 3};
  engine.set_ids(first);
  std::vector<float> logits(std::size_t{rows} * 1000);
  std::vector<std::int32_t> chosen(rows);
  for (int step = 0; step < 12; ++step) {
    engine.step_async();
    on_device::check(cudaMemcpyAsync(logits.data(),
                                     engine.logits(),
                                     logits.size() * sizeof(float),
                                     cudaMemcpyDeviceToHost,
                                     engine.stream()));
    on_device::check(cudaMemcpyAsync(chosen.data(),
                                     engine.ids(),
                                     chosen.size() * sizeof(std::int32_t),
                                     cudaMemcpyDeviceToHost,
                                     engine.stream()));
    on_device::check(cudaStreamSynchronize(engine.stream()));
    for (std::size_t row = 0; row < rows; ++row) {
      auto const begin = logits.begin() + static_cast<std::ptrdiff_t>(row * 1000);
      auto const best = std::max_element(begin, begin + 1000);
      REQUIRE(std::isfinite(*best));
      REQUIRE(chosen[row] == best - begin);
    }
  }
}

TEST_CASE("what the device engine cannot do is refused in a sentence") {
  adore::cache_request request{.layers = 2, .kv_heads = 2, .channels = 64, .budget = 8};
  auto const refused = [&](char const* policy, char const* because) {
    try {
      on_device::make_device_cache<float>(policy, request);
      FAIL("nothing was refused");
    } catch (std::invalid_argument const& error) {
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(because) != std::string::npos);
    }
  };
  refused("snapkv(window=4)", "snapkv runs on the host only: it selects from a dense prompt");
  refused("h3o", "there is no policy 'h3o'");
  request.channels = 32;
  refused("h2o", "h2o is not compiled for heads of 32 channels of float");
  request.channels = 128;
  refused("tova", "tova is not compiled for heads of 128 channels of float");

  llama_example::model const model = load(wide_heads);
  on_device::device_model<float> const weights(model);
  request.channels = 64, request.layers = 3;
  auto const cache = on_device::make_device_cache<float>("h2o", request);
  CHECK_THROWS_AS(on_device::device_engine<float>(weights, {cache.get()}), std::invalid_argument);
  tiny_shape many_heads = wide_heads;
  many_heads.heads = 9, many_heads.kv_heads = 1;
  CHECK_THROWS_WITH_AS(
      device_side<float>(load(many_heads), {{"h2o"}}),
      "device_engine: the model has 9 query heads for 1 KV heads; its attention is compiled for at "
      "most 8 per KV head (16: bfloat16, heads of 128 channels)",
      std::invalid_argument);
  device_side<float> device(model, {{"h2o"}});
  CHECK_THROWS_AS(device.engine->set_ids(std::vector<std::int32_t>{1, 2}), std::invalid_argument);
  CHECK_THROWS_AS(device.engine->set_ids(std::vector<std::int32_t>{1, 2, model.vocabulary}),
                  std::invalid_argument);
}
