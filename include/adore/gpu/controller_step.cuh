// SPDX-License-Identifier: Apache-2.0
// The kernels of the controller: the products with the vocabulary's embeddings, one step of the
// recurrence for each row, the scores of all tokens.
#pragma once

#include "adore/controller/options.hpp"
#include "adore/controller/score_head.hpp"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu {

/// The weights and the memory of all sequences as kernels see them. Matrices are [in, out].
struct controller_view {
  controller_options options{};
  index_t inputs = 0, hidden = 0, outputs = 0, gate_rows = 0;
  index_t tokens = 0;  // of the longest sequence

  float const* products = nullptr;       // [vocabulary, gate row] W_i x + b_i
  float const* hidden_weight = nullptr;  // [hidden, gate row]
  float const* hidden_bias = nullptr;    // [gate row]
  float const* interaction = nullptr;    // [hidden, hidden]
  float const* bias = nullptr;           // [hidden] W_I b_p + b_I
  float const* slope = nullptr;          // [hidden] W_I W_p
  float const* query = nullptr;   // [hidden, hidden] W_c, or M / sqrt(hidden) row by row (bilinear)
  float const* output = nullptr;  // [output, hidden]
  float const* output_bias = nullptr;  // [output]

  float* states = nullptr;   // [row, hidden] z
  float* current = nullptr;  // [row, hidden] what the newest token adds
  float* values = nullptr;   // [row, token, hidden] v, if scores change
  float* history = nullptr;  // [row, token, hidden] z (bilinear)
  float* logits = nullptr;   // [row, output, token]
};

namespace detail {

/// Grid: groups of 8 vocabulary entries; a thread per gate row.
template <class T>
__global__ void input_products_kernel(T const* const embeddings,  // [vocabulary, inputs]
                                      index_t const vocabulary,
                                      index_t const inputs,
                                      index_t const gate_rows,
                                      bool const scaled,
                                      float const* const weight,  // [inputs, gate row]
                                      float const* const bias,
                                      float* const products) {
  constexpr index_t together = 8;
  constexpr index_t step = 64;
  __shared__ float x[together][step];
  index_t const first = static_cast<index_t>(blockIdx.x) * together;
  auto const thread = static_cast<index_t>(threadIdx.x);
  auto const threads = static_cast<index_t>(blockDim.x);
  for (index_t row = thread; row - thread < gate_rows; row += threads) {
    float sum[together] = {};
    float squares[together] = {};
    for (index_t begin = 0; begin < inputs; begin += step) {
      __syncthreads();
      for (index_t i = thread; i < together * step; i += threads) {
        index_t const e = i / step;
        index_t const c = begin + i % step;
        bool const there = first + e < vocabulary && c < inputs;
        x[e][i % step] =
            there ? static_cast<float>(embeddings[std::int64_t{first + e} * inputs + c]) : 0.0F;
      }
      __syncthreads();
      for (index_t c = 0; c < step && begin + c < inputs; ++c) {
        float const w = row < gate_rows ? weight[std::int64_t{begin + c} * gate_rows + row] : 0.0F;
#pragma unroll
        for (index_t e = 0; e < together; ++e) {
          sum[e] += w * x[e][c];
          squares[e] += x[e][c] * x[e][c];
        }
      }
    }
    if (row >= gate_rows) continue;
    for (index_t e = 0; e < together && first + e < vocabulary; ++e) {
      float const scale =
          scaled ? 1.0F / sqrtf(squares[e] / static_cast<float>(inputs) + 1e-6F) : 1.0F;
      products[std::int64_t{first + e} * gate_rows + row] = sum[e] * scale + bias[row];
    }
  }
}

/// vector x matrix: entry `out` of sum over k of x[k] matrix[k, out], by one thread.
inline __device__ float product_at(
    float const* x, float const* matrix, index_t in, index_t width, index_t out) {
  float sum = 0.0F;
#pragma unroll 8
  for (index_t k = 0; k < in; ++k) sum += x[k] * matrix[std::int64_t{k} * width + out];
  return sum;
}

inline constexpr int hear_threads = 384;

/// One row per block; `View` is `controller_view`. Shared memory: z, the new z, sums of both kinds
/// of products, t.
template <class View>
__global__ void __launch_bounds__(hear_threads)
    hear_kernel(View const c, row_books const* const rows, index_t const* const ids) {
  extern __shared__ float memory[];
  float* const z = memory;                    // [hidden]
  float* const fresh = z + c.hidden;          // [hidden]
  float* const t = fresh + c.hidden;          // [hidden]
  float* const gates = t + c.hidden;          // [gate row] W_h z + b_h; cho: candidate's W_h (r z)
  float* const inputs = gates + c.gate_rows;  // [gate row]
  auto const row = static_cast<index_t>(blockIdx.x);
  auto const thread = static_cast<index_t>(threadIdx.x);
  auto const threads = static_cast<index_t>(blockDim.x);
  row_books const books = rows[row];
  if (books.count == 0 || books.next >= c.tokens) return;
  position_t const n = books.next;
  index_t const d = c.hidden;
  auto const each = [&](index_t count, auto&& work) {
    for (index_t i = thread; i < count; i += threads) work(i);
    __syncthreads();
  };
  each(d, [&](index_t k) { z[k] = n == 0 ? 0.0F : c.states[std::int64_t{row} * d + k]; });
  float const* const product = c.products + std::int64_t{ids[row]} * c.gate_rows;
  each(c.gate_rows, [&](index_t g) { inputs[g] = product[g]; });
  auto const sigmoid = [](float x) { return 1.0F / (1.0F + expf(-x)); };
  if (c.options.gru == gru_form::none) {
    each(d, [&](index_t k) { fresh[k] = inputs[k]; });
  } else {
    bool const before = c.options.gru == gru_form::cho;  // the reset, that is
    each(before ? 2 * d : 3 * d, [&](index_t g) {
      gates[g] = product_at(z, c.hidden_weight, d, 3 * d, g) + c.hidden_bias[g];
    });
    if (before) {
      each(d, [&](index_t k) { t[k] = sigmoid(inputs[k] + gates[k]) * z[k]; });
      each(d, [&](index_t k) {
        gates[2 * d + k] =
            product_at(t, c.hidden_weight, d, 3 * d, 2 * d + k) + c.hidden_bias[2 * d + k];
      });
    }
    each(d, [&](index_t k) {
      float const u = sigmoid(inputs[d + k] + gates[d + k]);
      float const reset = before ? 1.0F : sigmoid(inputs[k] + gates[k]);
      float const candidate = tanhf(inputs[2 * d + k] + reset * gates[2 * d + k]);
      fresh[k] = before ? (1.0F - u) * z[k] + u * candidate : (1.0F - u) * candidate + u * z[k];
    });
  }
  bool const moves = changes_with_length(c.options.position);
  float const position = moves ? 0.0F : position_value(c.options, n, n);
  std::int64_t const token = (std::int64_t{row} * c.tokens + n) * d;
  each(2 * d, [&](index_t i) {
    index_t const k = i < d ? i : i - d;
    if (i < d) {
      float const v = product_at(fresh, c.interaction, d, d, k) + c.bias[k] + position * c.slope[k];
      c.states[std::int64_t{row} * d + k] = fresh[k];
      t[k] = v;
      if (c.values != nullptr) c.values[token + k] = v;
      if (c.history != nullptr) c.history[token + k] = fresh[k];
    } else if (c.query != nullptr) {
      c.current[std::int64_t{row} * d + k] = product_at(fresh, c.query, d, d, k);
    }
  });
  if (c.values != nullptr) return;  // scores come with every step
  each(d, [&](index_t k) { t[k] = tanhf(t[k]); });
  for (index_t o = warp_in_block(); o < c.outputs; o += warps_in_block()) {
    float sum = 0.0F;
    for (index_t k = lane_in_warp(); k < d; k += warp_threads) {
      sum += t[k] * c.output[std::int64_t{o} * d + k];
    }
    for (int step = warp_threads / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(whole_warp, sum, step);
    }
    if (lane_in_warp() == 0) {
      c.logits[(std::int64_t{row} * c.outputs + o) * c.tokens + n] = sum + c.output_bias[o];
    }
  }
}

inline constexpr int score_warps = 8;
inline constexpr index_t tokens_per_block = 64;

/// Grid: (group of tokens, row); a warp per token.
template <class View>
__global__ void __launch_bounds__(score_warps* warp_threads)
    score_kernel(View const c, row_books const* const rows) {
  auto const row = static_cast<index_t>(blockIdx.y);
  row_books const books = rows[row];
  position_t const newest = books.next;  // the step's new token
  if (books.count == 0 || newest >= c.tokens) return;
  index_t const d = c.hidden;
  constexpr index_t most = 8;  // channels of a thread: hidden up to 256
  bool const moves = changes_with_length(c.options.position);
  bool const is_bilinear = c.options.mode == score_mode::bilinear;
  bool const is_conditioned = c.options.mode == score_mode::query_conditioned;
  index_t const first = static_cast<index_t>(blockIdx.x) * tokens_per_block;
  for (index_t i = first + warp_in_block(); i < first + tokens_per_block && i <= newest;
       i += score_warps) {
    std::int64_t const token = (std::int64_t{row} * c.tokens + i) * d;
    float const position = moves ? position_value(c.options, i, newest) : 0.0F;
    float t[most];
    float joint = 0.0F;
#pragma unroll
    for (index_t j = 0; j < most; ++j) {
      index_t const k = lane_in_warp() + j * warp_threads;
      t[j] = 0.0F;
      if (k >= d) continue;
      float v = c.values[token + k];
      if (moves) v += position * c.slope[k];
      float const current = c.query != nullptr ? c.current[std::int64_t{row} * d + k] : 0.0F;
      if (is_conditioned) v += current;
      if (is_bilinear) joint += current * c.history[token + k];
      t[j] = tanhf(v);
    }
    auto const sum_of_warp = [](float x) {
#pragma unroll
      for (int step = warp_threads / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(whole_warp, x, step);
      }
      return x;
    };
    if (is_bilinear) joint = sum_of_warp(joint);
    for (index_t o = 0; o < c.outputs; ++o) {
      float sum = 0.0F;
#pragma unroll
      for (index_t j = 0; j < most; ++j) {
        index_t const k = lane_in_warp() + j * warp_threads;
        if (k < d) sum += t[j] * c.output[std::int64_t{o} * d + k];
      }
      sum = sum_of_warp(sum);
      if (lane_in_warp() == 0) {
        c.logits[(std::int64_t{row} * c.outputs + o) * c.tokens + i] =
            sum + c.output_bias[o] + joint;
      }
    }
  }
}

}  // namespace detail

}  // namespace adore::gpu
