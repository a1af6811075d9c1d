// SPDX-License-Identifier: Apache-2.0
// The cache on the GPU: K/V, books and attention stay there, and a layer's step is one launch,
// which puts the new K and V into their slots, attends, lets H2O observe and releases its victims.
//
// Look at the loop. It allocates nothing and waits for nothing, and no slot number passes through
// the host: the books in device memory say where the next token goes. The host asks at the end.
//
// Only what a file uses is compiled: with decode_attention.cuh and nothing else in it a .cu takes 2
// s (nvcc 13.0, -std=c++20 -arch=sm_90; an empty one 0.8 s), this example, with its kernel, 5 s.
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/policies/h2o.hpp>

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <random>
#include <vector>

using adore::index_t;
using adore::gpu::device_buffer;

constexpr index_t rows = 2, layers = 2, heads = 4, kv_heads = 2, channels = 64, tokens = 100;
constexpr index_t most_rows = 4;  // query heads per KV head at most: fewer compile faster

/// Random numbers [token, layer, row, head, channel]; a model would compute them.
std::vector<float> random_numbers(index_t n_heads, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(tokens * layers * rows * n_heads * channels));
  for (float& x : numbers) x = normal(engine);
  return numbers;
}

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU here");
    return 77;
  }
  adore::h2o const policy{.heavy = 16, .recent = 16};
  index_t const budget = policy.budget();
  // each KV head of each layer of each row is a lane of 32 tokens, with a slot for the newcomer
  adore::kv_shape const shape{rows, layers, kv_heads, budget + 1, channels};
  adore::gpu::device_store<float> store(shape);
  adore::gpu::device_ledger<adore::h2o> books(policy, shape, adore::scope::kv_head);
  device_buffer<float> const q(random_numbers(heads, 1));
  device_buffer<float> const k(random_numbers(kv_heads, 2)), v(random_numbers(kv_heads, 3));
  device_buffer<float> output(static_cast<std::size_t>(rows * heads * channels));
  auto const stride = static_cast<std::size_t>(books.view().stride);  // of a lane, in slots
  device_buffer<float> weights(static_cast<std::size_t>(rows * kv_heads) * stride);

  cudaStream_t stream = nullptr;
  adore::gpu::check(cudaStreamCreate(&stream));
  for (index_t row = 0; row < rows; ++row) books.open_async(stream, row);
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t layer = 0; layer < layers; ++layer) {
      index_t const first = (token * layers + layer) * rows * channels;  // times heads
      adore::gpu::attend_args<float, adore::kv_view<float>> const args{
          .q = {q.data() + first * heads, rows, heads, channels},
          .k = {k.data() + first * kv_heads, rows, kv_heads, channels},
          .v = {v.data() + first * kv_heads, rows, kv_heads, channels},
          .keys = store.keys(layer),
          .values = store.values(layer),
          .out = {output.data(), rows, heads, channels},
          .weights = weights.data(),  // only because we want to look at them
          .layer = layer,
          .reduction = adore::gqa_reduction::mean};  // of the two query heads of a KV head
      adore::gpu::attend_async<channels, most_rows>(stream, args, books.view(), policy);
    }
    adore::gpu::advance_async(stream, books.view());
  }

  bool right = books.tokens_without_room(stream) == 0;
  for (index_t lane = 0; lane < rows * layers * kv_heads; ++lane) {
    std::vector<adore::position_t> const kept = books.kept(stream, lane);
    std::printf("lane %d:", lane);
    for (adore::position_t const position : kept) std::printf(" %d", position);
    std::printf("\n");
    // the recent tokens are there, and before them as many heavy ones
    right = right && kept.size() == static_cast<std::size_t>(budget);
    for (index_t i = 0; right && i < policy.recent; ++i) {
      right = kept[static_cast<std::size_t>(policy.heavy + i)] == tokens - policy.recent + i;
    }
  }
  std::vector<float> const last_weights = weights.to_host(stream);  // of the last layer and step
  for (std::size_t lane = 0; lane < static_cast<std::size_t>(rows * kv_heads); ++lane) {
    double sum = 0.0;
    for (std::size_t slot = 0; slot < static_cast<std::size_t>(budget + 1); ++slot) {
      sum += double{last_weights[lane * stride + slot]};
    }
    std::printf("the weights of the last query in lane %zu of layer %d sum to %.6f\n",
                lane,
                layers - 1,
                sum);
    right = right && std::abs(sum - 1.0) < 1e-4;
  }
  adore::gpu::check(cudaStreamDestroy(stream));
  if (!right)
    std::puts("wrong: 16 recent and 16 heavy tokens, and weights that sum to 1, expected");
  return right ? 0 : 1;
}
