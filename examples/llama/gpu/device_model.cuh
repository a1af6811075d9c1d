// SPDX-License-Identifier: Apache-2.0
// A Llama's weights in device memory: those of a model file, or random ones of any shape.
#pragma once

#include "llama/model.hpp"
#include <adore/gpu/device_buffer.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llama_example::gpu {

/// Row-major [rows, columns] in device memory; a product is y[token, rows] = x[token, columns] W^T.
template <class T>
struct device_matrix {
  int rows = 0, columns = 0;
  adore::gpu::device_buffer<T> data;
};

/// Matrices that are multiplied with the same input are one: their rows follow each other.
template <class T>
struct device_layer {
  adore::gpu::device_buffer<float> attention_norm;  // [width]
  device_matrix<T> query_key_value;                 // [(heads + 2 kv_heads) channels, width]
  device_matrix<T> output;                          // [width, heads channels]
  adore::gpu::device_buffer<float> feed_norm;       // [width]
  device_matrix<T> gate_up;                         // [2 hidden, width]
  device_matrix<T> down;                            // [width, hidden]
};

/// @tparam T  float or __nv_bfloat16; gains of the norms are float
template <class T>
class device_model {
 public:
  /// Copies the weights of `from` to the device, rounded to T.
  explicit device_model(model const& from);
  /// Random weights of a shape, of the variance 1 / columns.
  ///
  /// @param shape  numbers only, see shapes.hpp
  static device_model random(model const& shape, std::uint64_t seed);

  model const& numbers() const noexcept { return numbers_; }  ///< without weights
  device_matrix<T> const& embedding() const noexcept { return embedding_; }
  std::vector<device_layer<T>> const& layers() const noexcept { return layers_; }
  adore::gpu::device_buffer<float> const& final_norm() const noexcept { return final_norm_; }
  device_matrix<T> const& head() const noexcept {
    return head_.data.size() > 0 ? head_ : embedding_;
  }
  /// What a step reads of it: all but the embedding of the tokens that are not there.
  std::size_t bytes_per_step() const noexcept;

 private:
  device_model() = default;

  model numbers_;
  device_matrix<T> embedding_;  // [vocabulary, width]
  std::vector<device_layer<T>> layers_;
  adore::gpu::device_buffer<float> final_norm_;  // [width]
  device_matrix<T> head_;                        // [vocabulary, width]; empty: the embedding serves
};

}  // namespace llama_example::gpu
