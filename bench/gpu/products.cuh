// SPDX-License-Identifier: Apache-2.0
// The matrix products between which a model attends: what attention costs there differs from what
// it costs after another attention, since L2 and the instruction caches are full of other things.
#pragma once

#include "attention_shapes.cuh"
#include "full_cache.cuh"
#include "llama/gpu/matrix_product.cuh"
#include <adore/gpu/device_buffer.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace adore::bench {

/// Queries, keys and values of a layer of 4096 channels with 32 heads, from as many tokens as there
/// are sequences: 100 MB of weights, others in each of six layers.
class products {
 public:
  explicit products(index_t sequences)
      : sequences_(sequences),
        multiply_(cudaStream_t{nullptr}),
        x_(random_buffer(static_cast<std::size_t>(sequences) * columns, 1.0F, 11)),
        y_(static_cast<std::size_t>(sequences) * rows) {
    for (std::uint64_t layer = 0; layer < layers; ++layer) {
      layers_.push_back({rows, columns, random_buffer(std::size_t{columns} * rows, 0.01F, layer)});
    }
  }

  void multiply_async(cudaStream_t stream, index_t layer) {
    multiply_.move_to(stream);
    multiply_(layers_[static_cast<std::size_t>(layer) % layers], x_.data(), y_.data(), sequences_);
  }

 private:
  static constexpr int columns = 4096, rows = 3 * 4096;
  static constexpr std::size_t layers = 6;

  index_t sequences_;
  llama_example::gpu::matrix_product multiply_;
  gpu::device_buffer<element> x_, y_;
  std::vector<llama_example::gpu::device_matrix<element>> layers_;
};

}  // namespace adore::bench
