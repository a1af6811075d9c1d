// SPDX-License-Identifier: Apache-2.0
// What FlashInfer's decode kernels are given beside tensors: memory for their plan and for parts of
// results, and the plain attention that they compute.
#pragma once

#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/error.cuh>

#include <cuda_runtime_api.h>

#include <flashinfer/allocator.h>
#include <flashinfer/attention/variants.cuh>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashinfer_example {

/// softmax(q.k x scale) v, nothing else.
using plain_attention = flashinfer::DefaultAttention</*use_custom_mask*/ false,
                                                     /*use_sliding_window*/ false,
                                                     /*use_logits_soft_cap*/ false,
                                                     /*use_alibi*/ false>;

/// Enough for any shape: 128 MiB are what FlashInfer's documentation recommends, 8 MiB what its
/// Python side allocates.
///
/// Memory: two cudaMalloc at construction.
struct decode_memory {
  adore::gpu::device_buffer<std::byte> parts{std::size_t{128} << 20U};
  adore::gpu::device_buffer<std::byte> plan{std::size_t{8} << 20U};
  std::vector<std::byte> staged_plan = std::vector<std::byte>(std::size_t{8} << 20U);

  template <class T>
  T* part(std::int64_t offset) {
    return flashinfer::GetPtrFromBaseOffset<T>(parts.data(), offset);
  }
  /// Page numbers and the like, which are 32 bits everywhere here.
  std::int32_t* planned(std::int64_t offset) {
    return flashinfer::GetPtrFromBaseOffset<std::int32_t>(plan.data(), offset);
  }
};

static __global__ void multiply_by_ln2(float* lse, int count) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) lse[i] *= 0.693147181F;
}
/// FlashInfer's log-sum-exp is a logarithm to base 2, adore's is natural.
///
/// @param lse  [count]; nullptr: nothing happens
inline void to_natural_logarithm_async(cudaStream_t stream, float* lse, int count) {
  if (lse == nullptr || count == 0) return;
  multiply_by_ln2<<<(count + 127) / 128, 128, 0, stream>>>(lse, count);
  adore::gpu::check(cudaGetLastError());
}

}  // namespace flashinfer_example
