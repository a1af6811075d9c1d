// SPDX-License-Identifier: Apache-2.0
// y = x W^T by cuBLAS, set up so that it can be captured into a graph.
#pragma once

#include "llama/gpu/device_model.cuh"
#include "llama/gpu/handles.cuh"
#include <adore/gpu/device_buffer.cuh>

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <type_traits>

namespace llama_example::gpu {

class matrix_product {
 public:
  /// All products go to `stream`. Memory: cuBLAS's workspace, once; it would otherwise allocate its
  /// own, and inside a capture once more.
  explicit matrix_product(cudaStream_t stream) : workspace_(workspace_bytes) {
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle));
    handle_.reset(handle);
    move_to(stream);
    // partial sums of a product that is cut along k stay float, too
    check(
        cublasSetMathMode(handle,
                          static_cast<cublasMath_t>(
                              static_cast<int>(CUBLAS_DEFAULT_MATH) |
                              static_cast<int>(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION))));
  }

  /// Products to come go to `stream`, which may be captured.
  void move_to(cudaStream_t stream) {
    check(cublasSetStream(handle_.get(), stream));
    check(
        cublasSetWorkspace(handle_.get(), workspace_.data(), workspace_bytes));  // after the stream
  }

  /// y[token, rows] = x[token, columns] W^T; sums are float, and products of floats too: no TF32.
  ///
  /// cuBLAS calls the first index the fastest, so our row-major x[token, columns] is its matrix
  /// X'(columns, tokens) with leading dimension `columns`, likewise W is W'(columns, rows) and
  /// y is Y'(rows, tokens). y = x W^T means Y'(r, t) = sum over c of W'(c, r) X'(c, t), that is
  ///     Y' = transposed(W') X',  m = rows, n = tokens, k = columns.
  /// With rows = 2, columns = 3, one token: W = {1,2,3, 4,5,6} is W' with columns (1,2,3), (4,5,6);
  /// transposed it has the rows (1,2,3), (4,5,6); times X' = (1,0,1) this is (4, 10), and so is y.
  ///
  /// @tparam Out  T, or float
  template <class T, class Out>
  void operator()(device_matrix<T> const& w, T const* x, Out* y, int tokens) const {
    float const one = 1.0F;
    float const zero = 0.0F;
    check(cublasGemmEx(handle_.get(),
                       CUBLAS_OP_T,
                       CUBLAS_OP_N,
                       w.rows,
                       tokens,
                       w.columns,
                       &one,
                       w.data.data(),
                       type_of<T>(),
                       w.columns,
                       x,
                       type_of<T>(),
                       w.columns,
                       &zero,
                       y,
                       type_of<Out>(),
                       w.rows,
                       CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT));
  }

 private:
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20U;  // what Hopper is given
  template <class T>
  static constexpr cudaDataType_t type_of() {
    return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
  }

  adore::gpu::device_buffer<std::byte> workspace_;
  cublas_owner handle_;
};

}  // namespace llama_example::gpu
