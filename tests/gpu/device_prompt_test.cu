// SPDX-License-Identifier: Apache-2.0
// A dense prompt on the device and on the host, where it is a step of as many tokens: from the same
// weights the same tokens stay, with the same states.
#include "support/agreement.cuh"
#include "support/device_tensor.cuh"
#include <adore/gpu/append_prompt.cuh>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/device_prompt.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/policies/adaptors/newest_of_equals_first.hpp>
#include <adore/policies/adaptors/with_protection.hpp>
#include <adore/policies/decayed_h2o.hpp>
#include <adore/policies/h2o.hpp>
#include <adore/policies/keep_all.hpp>
#include <adore/policies/key_norm.hpp>
#include <adore/policies/random.hpp>
#include <adore/policies/sliding_window.hpp>
#include <adore/policies/streaming_llm.hpp>
#include <adore/policies/tova.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {
namespace {

constexpr index_t rows = 3, layers = 2, heads = 2, channels = 64, row = 1;

/// Weights and norms in {0, 1/64, ..., 31/64}, so that sums are exact and ties are many.
std::vector<float> dyadic(std::size_t count, std::mt19937& random) {
  std::vector<float> all(count);
  for (float& x : all) x = static_cast<float>(random() % 32) / 64.0F;
  return all;
}

template <class P>
void check_prompt(P const& policy, scope reach, index_t tokens, index_t max_new) {
  CAPTURE(word_of(reach));
  CAPTURE(tokens);
  CAPTURE(max_new);
  test_stream const stream;
  std::mt19937 random(static_cast<unsigned>(tokens));
  bool const is_bound = policy.budget() != unbounded;
  kv_shape const shape{
      rows, layers, heads, (is_bound ? policy.budget() : tokens) + max_new + 3, channels};
  gpu::device_ledger<P> books(policy, shape, reach, max_new);
  auto const& view = books.view();
  for (index_t r = 0; r < rows; ++r) books.open_async(stream, r, 40U + static_cast<unsigned>(r));
  row_snapshot const neighbour = books.snapshot(stream, 0);
  index_t const stride = tokens + 5;
  device_tensor<float> weights(dyadic(static_cast<std::size_t>(layers * heads * stride), random));
  device_tensor<float> norms(dyadic(static_cast<std::size_t>(layers * heads * tokens), random));
  auto const of_tokens = static_cast<std::size_t>(layers * tokens * heads * channels);
  device_tensor<float> k(random_exact<float>(of_tokens, random));
  device_tensor<float> v(random_exact<float>(of_tokens, random));
  gpu::device_store<float> store(shape);
  for (index_t layer = 0; layer < layers; ++layer) {  // NaN where nothing is written
    auto const bytes =
        sizeof(float) * static_cast<std::size_t>(rows * heads * shape.slots * channels);
    gpu::check(cudaMemsetAsync(store.keys(layer).data, 0xFF, bytes, stream));
    gpu::check(cudaMemsetAsync(store.values(layer).data, 0xFF, bytes, stream));
  }

  gpu::device_prompt prompt(view.lane_heads(), tokens + 9);
  auto const tokens_of = [&](device_tensor<float>& all, index_t layer) {
    return token_view<float const>(
        all.data() + std::ptrdiff_t{layer} * tokens * heads * channels, tokens, heads, channels);
  };
  for (index_t layer = 0; layer < layers; ++layer) {
    if (layer < view.lane_layers()) {
      gpu::prompt_of_row const given{.row = row,
                                     .tokens = tokens,
                                     .weights = weights.data() + layer * heads * stride,
                                     .weights_stride = stride,
                                     .key_norms = norms.data() + layer * heads * tokens};
      prompt.enter_async(stream, view, policy, layer, given);
    }
    gpu::append_prompt_async(stream,
                             view,
                             layer,
                             row,
                             store.keys(layer),
                             store.values(layer),
                             tokens_of(k, layer),
                             tokens_of(v, layer));
  }

  ledger<P> host(policy, {rows, layers, heads, 2 * tokens + 64, 1}, reach, tokens);
  host.open(row, 40U + row);
  host.for_lanes(row, [&](index_t lane) {
    host.place(lane, tokens);
    auto const slots = host.slots_of(lane);
    lane_extent const extent = host.extent_of(lane);
    std::vector<float> combined(static_cast<std::size_t>(slots.slots), 0.0F);
    for (index_t token = 0; token < tokens; ++token) {
      index_t const slot = host.new_slots(lane)[static_cast<std::size_t>(token)];
      float norm = 0.0F;
      for (index_t l = extent.first_layer; l < extent.end_layer; ++l) {
        for (index_t h = extent.first_head; h < extent.end_head; ++h) {
          combined[static_cast<std::size_t>(slot)] +=
              weights.host[static_cast<std::size_t>((l * heads + h) * stride + token)];
          norm += norms.host[static_cast<std::size_t>((l * heads + h) * tokens + token)];
        }
      }
      if constexpr (scores_keys<P>) policy.score_key(slots.state(slot), norm);
    }
    host.commit(lane, tokens, observes_attention<P> ? combined.data() : nullptr);
  });
  host.advance(row, tokens);
  auto device = on_host(books, stream, row);
  agreement agrees;
  compare_kept(device, host, row, agrees);
  compare_states(device, host, row, agrees);
  CHECK(agrees.lanes == host.lanes_per_row());
  CHECK(agrees.differences == 0);
  CHECK(agrees.other_states == 0);
  CHECK(books.snapshot(stream, 0).positions == neighbour.positions);

  int misplaced = 0;
  for (index_t layer = 0; layer < layers; ++layer) {
    for (bool const is_key : {true, false}) {
      auto const at = is_key ? store.keys(layer) : store.values(layer);
      std::vector<float> memory(static_cast<std::size_t>(rows * heads * shape.slots * channels));
      gpu::check(cudaMemcpy(
          memory.data(), at.data, memory.size() * sizeof(float), cudaMemcpyDeviceToHost));
      auto const& all = is_key ? k.host : v.host;
      for (index_t i = 0; i < rows * heads * shape.slots; ++i) {
        index_t const slot = i % shape.slots, head = i / shape.slots % heads;
        position_t const p = i / shape.slots / heads == row
                                 ? device.slots_of(device.lane(row, layer, head)).positions[slot]
                                 : no_position;
        for (index_t c = 0; c < channels; ++c) {
          float const got = memory[static_cast<std::size_t>(i * channels + c)];
          auto const from = static_cast<std::size_t>(
              ((layer * tokens + std::max(p, 0)) * heads + head) * channels + c);
          misplaced += p < 0 || p >= tokens ? got == got : got != all[from];
        }
      }
    }
  }
  CHECK(misplaced == 0);
}

template <class P>
void check_everywhere(P const& policy) {
  for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
    check_prompt(policy, reach, 300, 1);
    check_prompt(policy, reach, 61, 4);
    check_prompt(policy, reach, 7, 2);  // fewer than the budget
  }
}

TEST_CASE("of a prompt the device keeps what the host keeps") {
  SUBCASE("h2o") {
    check_everywhere(h2o{.heavy = 15, .recent = 8});
  }
  SUBCASE("h2o, all of the budget protected") {
    check_everywhere(h2o{.heavy = 0, .recent = 20});
  }
  SUBCASE("decayed_h2o") {
    check_everywhere(decayed_h2o{.heavy = 15, .recent = 8, .factor = 0.5F});
  }
  SUBCASE("tova") {
    check_everywhere(tova{.size = 20});
  }
  SUBCASE("key_norm") {
    check_everywhere(key_norm{.size = 20, .recent = 3});
  }
  SUBCASE("sliding_window") {
    check_everywhere(sliding_window{.size = 20});
  }
  SUBCASE("streaming_llm") {
    check_everywhere(streaming_llm{.sinks = 4, .window = 16});
  }
  SUBCASE("random_reservoir") {
    check_everywhere(random_reservoir{.size = 20});
  }
  SUBCASE("keep_all") {
    check_everywhere(keep_all{});
  }
  SUBCASE("adaptors") {
    check_everywhere(newest_of_equals_first<tova>{{}, {.size = 20}});
    check_everywhere(with_protection<tova>{{}, {.size = 20}, 3, 5});
  }
}

TEST_CASE("a long prompt is selected from, and steps go on from there") {
  test_stream const stream;
  sliding_window const policy{.size = 100};
  constexpr index_t tokens = 60'000;
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 2, 102, 64}, scope::kv_head, 2);
  books.open_async(stream, 0);
  gpu::device_prompt prompt(2, tokens);
  prompt.enter_async(stream, books.view(), policy, 0, {.row = 0, .tokens = tokens});
  for (int i = 0; i < 5; ++i) {
    gpu::decide_async(stream, books.view(), policy, 0, {});
    gpu::advance_async(stream, books.view());
  }
  std::vector<position_t> newest(100);
  for (index_t i = 0; i < 100; ++i) newest[static_cast<std::size_t>(i)] = tokens + 5 - 100 + i;
  CHECK(books.kept(stream, 0) == newest);
  CHECK(books.kept(stream, 1) == newest);
  CHECK(books.tokens_without_room(stream) == 0);
}

TEST_CASE("prompts that do not fit are refused") {
  h2o const policy{.heavy = 4, .recent = 4};
  gpu::device_ledger<h2o> const books(policy, {2, 2, 2, 9, 64}, scope::kv_head);
  gpu::device_prompt prompt(2, 100);
  gpu::device_buffer<float> const weights(400);
  auto const enter = [&](gpu::prompt_of_row const& given, index_t layer) {
    prompt.enter_async(nullptr, books.view(), policy, layer, given);
  };
  gpu::prompt_of_row given{.row = 0, .tokens = 100, .weights_stride = 100};
  CHECK_THROWS_WITH_AS(enter(given, 0), doctest::Contains("weights are needed"), std::logic_error);
  given.weights = weights.data();
  CHECK_THROWS_WITH_AS(enter(given, 2), doctest::Contains("layer 2"), std::logic_error);
  given.row = 2;
  CHECK_THROWS_WITH_AS(enter(given, 0), doctest::Contains("prompt.row = 2"), std::invalid_argument);
  given.row = 0;
  given.tokens = 101;
  CHECK_THROWS_WITH_AS(
      enter(given, 0), doctest::Contains("prompt.tokens = 101"), std::invalid_argument);
  given.tokens = 100;
  given.weights_stride = 99;
  CHECK_THROWS_WITH_AS(
      enter(given, 0), doctest::Contains("weights_stride = 99"), std::invalid_argument);
  gpu::device_ledger<h2o> const layered(policy, {2, 2, 2, 9, 64}, scope::layer);
  CHECK_THROWS_WITH_AS(prompt.enter_async(nullptr, layered.view(), policy, 0, given),
                       doctest::Contains("made for 2 lanes per layer, the ledger has 1"),
                       std::logic_error);
  gpu::device_ledger<keep_all> const endless({}, {1, 1, 2, 50, 64}, scope::kv_head);
  CHECK_THROWS_WITH_AS(
      prompt.enter_async(nullptr, endless.view(), keep_all{}, 0, {.row = 0, .tokens = 50}),
      doctest::Contains("no budget"),
      std::invalid_argument);
  CHECK_THROWS_AS(gpu::device_prompt(0, 5), std::invalid_argument);
}

}  // namespace
}  // namespace adore::testing
