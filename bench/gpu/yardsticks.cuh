// SPDX-License-Identifier: Apache-2.0
// Kernels that do the least a stage could do: start, read its bytes once, or copy them.
#pragma once

#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/error.cuh>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace adore::bench {

static __global__ void do_nothing() {}

/// Grid: any. Threads read eight vectors each before they wait for the first.
static __global__ void __launch_bounds__(512)
    read_kernel(uint4 const* from, std::int64_t vectors, unsigned* to) {
  unsigned x = 0;
  std::int64_t const stride = gridDim.x * 512LL;
  std::int64_t i = blockIdx.x * 512LL + threadIdx.x;
  for (; i + 7 * stride < vectors; i += 8 * stride) {
    uint4 part[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) part[n] = __ldcs(from + i + n * stride);
#pragma unroll
    for (int n = 0; n < 8; ++n) x ^= part[n].x ^ part[n].y ^ part[n].z ^ part[n].w;
  }
  for (; i < vectors; i += stride) {
    uint4 const part = __ldcs(from + i);
    x ^= part.x ^ part.y ^ part.z ^ part.w;
  }
  if (x == 0x12345678U) *to = x;
}

/// Grid: (256 vectors).
static __global__ void __launch_bounds__(256)
    copy_kernel(uint4 const* from, uint4* to, std::int64_t vectors) {
  std::int64_t const i = blockIdx.x * 256LL + threadIdx.x;
  if (i < vectors) to[i] = from[i];
}

/// Reads `bytes`, a multiple of 16, on at most four blocks of 512 threads per multiprocessor of an
/// H100.
inline void read_once_async(cudaStream_t stream,
                            void const* from,
                            std::size_t bytes,
                            unsigned* to) {
  auto const vectors = static_cast<std::int64_t>(bytes / 16);
  auto const blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>((vectors + 511) / 512, 1, 132 * 4));
  read_kernel<<<blocks, 512, 0, stream>>>(static_cast<uint4 const*>(from), vectors, to);
  gpu::check(cudaGetLastError());
}
/// Copies `bytes`, a multiple of 16, a vector per thread.
inline void copy_once_async(cudaStream_t stream, void const* from, void* to, std::size_t bytes) {
  auto const vectors = static_cast<std::int64_t>(bytes / 16);
  copy_kernel<<<static_cast<unsigned>((vectors + 255) / 256), 256, 0, stream>>>(
      static_cast<uint4 const*>(from), static_cast<uint4*>(to), vectors);
  gpu::check(cudaGetLastError());
}

}  // namespace adore::bench
