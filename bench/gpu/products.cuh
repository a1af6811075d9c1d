// SPDX-License-Identifier: Apache-2.0
// The matrix products between which a model attends: what attention costs there differs from what
// it costs after another attention, since L2 and the instruction caches are full of other things.
#pragma once

#include "attention_shapes.cuh"
#include "full_cache.cuh"
#include <adore/gpu/device_buffer.cuh>

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>

namespace adore::bench {

/// Queries, keys and values of a layer of 4096 channels with 32 heads, from as many tokens as there
/// are sequences: 100 MB of weights, others in each of six layers.
class products {
 public:
  explicit products(index_t sequences)
      : sequences_(sequences),
        x_(random_buffer(static_cast<std::size_t>(sequences) * columns, 1.0F, 11)),
        weights_(random_buffer(layers * layer_elements, 0.01F, 12)),
        y_(static_cast<std::size_t>(sequences) * rows),
        workspace_(workspace_bytes) {
    require(cublasCreate(&handle_));
  }
  products(products const&) = delete;
  products& operator=(products const&) = delete;
  ~products() { cublasDestroy(handle_); }

  void multiply_async(cudaStream_t stream, index_t layer) {
    float const one = 1.0F;
    float const zero = 0.0F;
    require(cublasSetStream(handle_, stream));
    require(cublasSetWorkspace(handle_, workspace_.data(), workspace_bytes));  // after the stream
    require(
        cublasGemmEx(handle_,
                     CUBLAS_OP_T,
                     CUBLAS_OP_N,
                     rows,
                     sequences_,
                     columns,
                     &one,
                     weights_.data() + static_cast<std::size_t>(layer % layers) * layer_elements,
                     CUDA_R_16BF,
                     columns,
                     x_.data(),
                     CUDA_R_16BF,
                     columns,
                     &zero,
                     y_.data(),
                     CUDA_R_16BF,
                     rows,
                     CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT));
  }

 private:
  static constexpr int columns = 4096, rows = 3 * 4096;
  static constexpr index_t layers = 6;
  static constexpr std::size_t layer_elements = std::size_t{columns} * rows;
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20U;

  static void require(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(cublasGetStatusString(status));
  }

  index_t sequences_;
  gpu::device_buffer<element> x_, weights_, y_;
  gpu::device_buffer<std::byte> workspace_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace adore::bench
