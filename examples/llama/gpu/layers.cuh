// SPDX-License-Identifier: Apache-2.0
// What a Llama needs on the device besides matrix products and attention: one small kernel each,
// which also reads or writes what its neighbours would.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace llama_example::gpu {

// T is float or __nv_bfloat16. All pointers are device memory, row-major, the last index fastest.
// Every function enqueues on `stream`, returns before it is done, and may be captured.

/// x[token, width] = embedding[ids[token], width]
/// @param ids  each in [0, vocabulary)
template <class T>
void embed_async(cudaStream_t stream,
                 std::int32_t const* ids,
                 T const* embedding,
                 float* x,
                 int tokens,
                 int width);

/// x += delta; normed = RMS norm of x times gain. The residual stream x stays float throughout.
///
/// @param delta   [token, width]; nullptr: nothing is added
/// @param normed  [token, width]
template <class T>
void add_and_normalise_async(cudaStream_t stream,
                             float* x,
                             T const* delta,
                             float const* gain,
                             float epsilon,
                             T* normed,
                             int tokens,
                             int width);

/// gated[token, i] = SiLU(both[token, i]) * both[token, hidden + i]
/// @param both  [token, 2 * hidden], the gate first, then the up projection
template <class T>
void gate_async(cudaStream_t stream, T const* both, T* gated, int tokens, int hidden);

/// ids[token] = the token with the largest logit, the first of equals.
/// @param logits  [token, vocabulary]
void choose_best_async(
    cudaStream_t stream, float const* logits, std::int32_t* ids, int tokens, int vocabulary);

/// Uniformly random numbers in [-spread, spread), the same for the same seed.
template <class T>
void fill_random_async(
    cudaStream_t stream, T* data, std::size_t count, float spread, std::uint64_t seed);

}  // namespace llama_example::gpu
