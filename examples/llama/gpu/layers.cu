// SPDX-License-Identifier: Apache-2.0
#include "llama/gpu/layers.cuh"
#include <adore/gpu/error.cuh>
#include <adore/types.hpp>

#include <cub/block/block_reduce.cuh>
#include <cuda_bf16.h>
#include <thrust/execution_policy.h>
#include <thrust/tabulate.h>

namespace llama_example::gpu {

namespace {

using adore::gpu::check;

constexpr int threads = 512;

template <class T>
__global__ void embed_kernel(std::int32_t const* ids, T const* embedding, float* x, int width) {
  T const* const from = embedding + static_cast<std::int64_t>(ids[blockIdx.x]) * width;
  float* const to = x + static_cast<std::int64_t>(blockIdx.x) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    to[i] = static_cast<float>(from[i]);
  }
}

/// One token per block.
template <class T>
__global__ void __launch_bounds__(threads) add_and_normalise_kernel(
    float* x, T const* delta, float const* gain, float epsilon, T* normed, int width) {
  using reduce = cub::BlockReduce<float, threads>;
  __shared__ typename reduce::TempStorage scratch;
  __shared__ float scale;
  auto const row = static_cast<std::int64_t>(blockIdx.x) * width;
  float squares = 0.0F;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    float value = x[row + i];
    if (delta != nullptr) {
      value += static_cast<float>(delta[row + i]);
      x[row + i] = value;
    }
    squares += value * value;
  }
  float const total = reduce(scratch).Sum(squares);  // in thread 0
  if (threadIdx.x == 0) scale = 1.0F / sqrtf(total / static_cast<float>(width) + epsilon);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {  // its own numbers again
    normed[row + i] = static_cast<T>(x[row + i] * scale * gain[i]);
  }
}

/// Grid: (part of the hidden channels, token).
template <class T>
__global__ void gate_kernel(T const* both, T* gated, int hidden) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= hidden) return;
  auto const token = static_cast<std::int64_t>(blockIdx.y);
  auto const gate = static_cast<float>(both[token * 2 * hidden + i]);
  auto const up = static_cast<float>(both[token * 2 * hidden + hidden + i]);
  gated[token * hidden + i] = static_cast<T>(gate / (1.0F + expf(-gate)) * up);
}

struct candidate {
  float logit;
  std::int32_t id;
};
struct better {
  __device__ candidate operator()(candidate a, candidate b) const {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
  }
};

/// One token per block.
__global__ void __launch_bounds__(threads)
    choose_best_kernel(float const* logits, std::int32_t* ids, int vocabulary) {
  using reduce = cub::BlockReduce<candidate, threads>;
  __shared__ typename reduce::TempStorage scratch;
  float const* const row = logits + static_cast<std::int64_t>(blockIdx.x) * vocabulary;
  // what is no number never wins, so that the id is always one of the vocabulary
  candidate best{adore::keep_never, 0};
  for (int i = static_cast<int>(threadIdx.x); i < vocabulary; i += threads) {
    best = better{}(best, {row[i], i});
  }
  best = reduce(scratch).Reduce(best, better{});
  if (threadIdx.x == 0) ids[blockIdx.x] = best.id;
}

/// A number's index, well mixed (splitmix64).
__device__ std::uint64_t mixed(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31U);
}

unsigned blocks_for(int tokens) {
  return static_cast<unsigned>(tokens);
}

}  // namespace

template <class T>
void embed_async(cudaStream_t stream,
                 std::int32_t const* ids,
                 T const* embedding,
                 float* x,
                 int tokens,
                 int width) {
  embed_kernel<<<blocks_for(tokens), threads, 0, stream>>>(ids, embedding, x, width);
  check(cudaGetLastError());
}

template <class T>
void add_and_normalise_async(cudaStream_t stream,
                             float* x,
                             T const* delta,
                             float const* gain,
                             float epsilon,
                             T* normed,
                             int tokens,
                             int width) {
  add_and_normalise_kernel<<<blocks_for(tokens), threads, 0, stream>>>(
      x, delta, gain, epsilon, normed, width);
  check(cudaGetLastError());
}

template <class T>
void gate_async(cudaStream_t stream, T const* both, T* gated, int tokens, int hidden) {
  constexpr unsigned each = 256;
  dim3 const grid((static_cast<unsigned>(hidden) + each - 1) / each, blocks_for(tokens));
  gate_kernel<<<grid, each, 0, stream>>>(both, gated, hidden);
  check(cudaGetLastError());
}

void choose_best_async(
    cudaStream_t stream, float const* logits, std::int32_t* ids, int tokens, int vocabulary) {
  choose_best_kernel<<<blocks_for(tokens), threads, 0, stream>>>(logits, ids, vocabulary);
  check(cudaGetLastError());
}

template <class T>
void fill_random_async(
    cudaStream_t stream, T* data, std::size_t count, float spread, std::uint64_t seed) {
  auto const number = [=] __device__(std::uint64_t i) {
    auto const bits = static_cast<std::uint32_t>(mixed(mixed(seed) + i) >> 40U);  // 24 of them
    return static_cast<T>(spread * (static_cast<float>(bits) * 0x1p-23F - 1.0F));
  };
  // without "nosync" Thrust would wait for the numbers
  thrust::tabulate(thrust::cuda::par_nosync.on(stream), data, data + count, number);
}

template void embed_async(cudaStream_t, std::int32_t const*, float const*, float*, int, int);
template void embed_async(
    cudaStream_t, std::int32_t const*, __nv_bfloat16 const*, float*, int, int);
template void add_and_normalise_async(
    cudaStream_t, float*, float const*, float const*, float, float*, int, int);
template void add_and_normalise_async(
    cudaStream_t, float*, __nv_bfloat16 const*, float const*, float, __nv_bfloat16*, int, int);
template void gate_async(cudaStream_t, float const*, float*, int, int);
template void gate_async(cudaStream_t, __nv_bfloat16 const*, __nv_bfloat16*, int, int);
template void fill_random_async(cudaStream_t, float*, std::size_t, float, std::uint64_t);
template void fill_random_async(cudaStream_t, __nv_bfloat16*, std::size_t, float, std::uint64_t);

}  // namespace llama_example::gpu
