// SPDX-License-Identifier: Apache-2.0
#include "llama/gpu/device_model.cuh"
#include "llama/gpu/layers.cuh"
#include <adore/gpu/error.cuh>

#include <cuda_bf16.h>

#include <cmath>
#include <span>
#include <vector>

namespace llama_example::gpu {

namespace {

using adore::gpu::check;
using adore::gpu::device_buffer;

model without_weights(model const& from) {
  model numbers;
  numbers.width = from.width;
  numbers.layers = from.layers;
  numbers.heads = from.heads;
  numbers.kv_heads = from.kv_heads;
  numbers.channels = from.channels;
  numbers.hidden = from.hidden;
  numbers.vocabulary = from.vocabulary;
  numbers.trained_context = from.trained_context;
  numbers.norm_epsilon = from.norm_epsilon;
  numbers.rope_base = from.rope_base;
  numbers.rope_channels = from.rope_channels;
  numbers.rope_factors = from.rope_factors;
  return numbers;
}

/// The parts' rows one after the other.
template <class T>
device_matrix<T> stacked(std::vector<matrix const*> const& parts) {
  device_matrix<T> whole{0, parts.front()->columns, {}};
  std::vector<T> rows;
  for (matrix const* const part : parts) {
    whole.rows += part->rows;
    rows.reserve(rows.size() + part->data.size());
    for (float const x : part->data) rows.push_back(static_cast<T>(x));
  }
  whole.data = device_buffer<T>(std::span<T const>(rows));
  return whole;
}

/// Outputs of the size of the inputs: uniform numbers of variance 1 / columns.
template <class T>
device_matrix<T> random_matrix(int rows, int columns, std::uint64_t& seed) {
  device_matrix<T> filled{
      rows,
      columns,
      device_buffer<T>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns))};
  float const spread = std::sqrt(3.0F / static_cast<float>(columns));
  fill_random_async(cudaStream_t{nullptr}, filled.data.data(), filled.data.size(), spread, seed++);
  return filled;
}

device_buffer<float> ones(int count) {
  std::vector<float> const data(static_cast<std::size_t>(count), 1.0F);
  return device_buffer<float>(std::span<float const>(data));
}

}  // namespace

template <class T>
device_model<T>::device_model(model const& from) : numbers_(without_weights(from)) {
  embedding_ = stacked<T>({&from.embedding});
  for (layer_weights const& w : from.blocks) {
    layers_.push_back({device_buffer<float>(std::span<float const>(w.attention_norm)),
                       stacked<T>({&w.query, &w.key, &w.value}),
                       stacked<T>({&w.output}),
                       device_buffer<float>(std::span<float const>(w.feed_norm)),
                       stacked<T>({&w.gate, &w.up}),
                       stacked<T>({&w.down})});
  }
  final_norm_ = device_buffer<float>(std::span<float const>(from.final_norm));
  if (!from.head.data.empty()) head_ = stacked<T>({&from.head});
}

template <class T>
device_model<T> device_model<T>::random(model const& shape, std::uint64_t seed) {
  device_model filled;
  filled.numbers_ = without_weights(shape);
  int const heads = shape.heads * shape.channels;
  int const all_heads = heads + 2 * shape.kv_heads * shape.channels;
  filled.embedding_ = random_matrix<T>(shape.vocabulary, shape.width, seed);
  for (int layer = 0; layer < shape.layers; ++layer) {
    filled.layers_.push_back({ones(shape.width),
                              random_matrix<T>(all_heads, shape.width, seed),
                              random_matrix<T>(shape.width, heads, seed),
                              ones(shape.width),
                              random_matrix<T>(2 * shape.hidden, shape.width, seed),
                              random_matrix<T>(shape.width, shape.hidden, seed)});
  }
  filled.final_norm_ = ones(shape.width);
  filled.head_ = random_matrix<T>(shape.vocabulary, shape.width, seed);
  check(cudaDeviceSynchronize());
  return filled;
}

template <class T>
std::size_t device_model<T>::bytes_per_step() const noexcept {
  std::size_t bytes = head().data.bytes() + final_norm_.bytes();
  for (device_layer<T> const& w : layers_) {
    bytes += w.attention_norm.bytes() + w.query_key_value.data.bytes() + w.output.data.bytes() +
             w.feed_norm.bytes() + w.gate_up.data.bytes() + w.down.data.bytes();
  }
  return bytes;
}

template class device_model<float>;
template class device_model<__nv_bfloat16>;

}  // namespace llama_example::gpu
