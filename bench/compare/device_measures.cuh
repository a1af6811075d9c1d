// SPDX-License-Identifier: Apache-2.0
// The measures of measures.hpp on the device: sums per row of the batch, each written by one
// thread, so that a run repeats to the bit.
#pragma once

#include "llama/gpu/device_cache.cuh"
#include <adore/gpu/error.cuh>
#include <adore/types.hpp>

#include <cub/block/block_reduce.cuh>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace comparison {

/// What is known of a row's predictions so far.
struct prediction_sums {
  double negative_log_likelihood = 0.0, second_half = 0.0, kl = 0.0;
  long long agreements = 0;
};

/// A row's logits in short.
struct logits_summary {
  double log_sum;  // log of the sum of exp(logit)
  int best;        // the first of the largest
};

namespace detail {

inline constexpr int measure_threads = 512;

struct ranked_logit {
  float logit;
  int token;
};
struct larger {
  __device__ ranked_logit operator()(ranked_logit a, ranked_logit b) const {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
  }
};

/// One row per block.
static __global__ void __launch_bounds__(measure_threads)
    summarise_kernel(float const* logits, int vocabulary, logits_summary* summaries) {
  using reduce_best = cub::BlockReduce<ranked_logit, measure_threads>;
  using reduce_sum = cub::BlockReduce<double, measure_threads>;
  __shared__ union {
    typename reduce_best::TempStorage best;
    typename reduce_sum::TempStorage sum;
  } scratch;
  __shared__ ranked_logit best;
  float const* const row = logits + static_cast<std::int64_t>(blockIdx.x) * vocabulary;
  ranked_logit own{adore::keep_never, 0};
  for (int i = static_cast<int>(threadIdx.x); i < vocabulary; i += measure_threads) {
    own = larger{}(own, {row[i], i});
  }
  own = reduce_best(scratch.best).Reduce(own, larger{});
  if (threadIdx.x == 0) best = own;
  __syncthreads();  // also before the scratch is used again
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < vocabulary; i += measure_threads) {
    sum += static_cast<double>(expf(row[i] - best.logit));
  }
  sum = reduce_sum(scratch.sum).Sum(sum);
  if (threadIdx.x == 0) {
    summaries[blockIdx.x] = {static_cast<double>(best.logit) + log(sum), best.token};
  }
}

/// One row per block. The reference of a row is the row of the same sequence in group 0.
static __global__ void __launch_bounds__(measure_threads)
    score_kernel(float const* logits,
                 logits_summary const* summaries,
                 std::int32_t const* came,
                 int vocabulary,
                 int sequences,
                 bool in_second_half,
                 prediction_sums* sums) {
  using reduce_sum = cub::BlockReduce<double, measure_threads>;
  __shared__ typename reduce_sum::TempStorage scratch;
  auto const row = static_cast<int>(blockIdx.x);
  int const reference = row % sequences;
  float const* const own = logits + static_cast<std::int64_t>(row) * vocabulary;
  float const* const full = logits + static_cast<std::int64_t>(reference) * vocabulary;
  auto const full_log_sum = static_cast<float>(summaries[reference].log_sum);
  double difference = 0.0;  // sum of p_full x (logit_full - logit)
  for (int i = static_cast<int>(threadIdx.x); i < vocabulary; i += measure_threads) {
    difference += static_cast<double>(expf(full[i] - full_log_sum)) *
                  (static_cast<double>(full[i]) - static_cast<double>(own[i]));
  }
  difference = reduce_sum(scratch).Sum(difference);
  if (threadIdx.x != 0) return;
  double const nats = summaries[row].log_sum - static_cast<double>(own[came[row]]);
  prediction_sums& to = sums[row];
  to.negative_log_likelihood += nats;
  if (in_second_half) to.second_half += nats;
  to.kl += difference - summaries[reference].log_sum + summaries[row].log_sum;
  to.agreements += summaries[row].best == summaries[reference].best ? 1 : 0;
}

inline constexpr int kept_threads = 128;

/// One (row, kv_head) per block.
static __global__ void __launch_bounds__(kept_threads)
    kept_weight_kernel(llama_example::gpu::layer_weights_view full,
                       llama_example::gpu::layer_positions of,
                       llama_example::gpu::layer_weights_view own,
                       adore::position_t from,
                       double* sums) {
  using reduce_sum = cub::BlockReduce<double, kept_threads>;
  __shared__ typename reduce_sum::TempStorage scratch;
  auto const pair = static_cast<adore::index_t>(blockIdx.x);
  adore::index_t const row = pair / of.kv_heads;
  adore::index_t const head = pair % of.kv_heads;
  adore::position_t const now = of.rows[row].next;  // of the step's token
  if (of.rows[row].count == 0 || now < from) return;
  float const* const weights = full.weights + static_cast<std::int64_t>(pair) * full.stride;
  adore::position_t const* const positions =
      of.positions + row * of.row_stride + head * of.head_stride;
  double held = 0.0;
  for (auto s = static_cast<adore::index_t>(threadIdx.x); s < of.slots; s += kept_threads) {
    adore::position_t const p = positions[s];
    if (p < 0 || p > now) continue;
    if (own.weights != nullptr &&
        own.weights[static_cast<std::int64_t>(pair) * own.stride + s] == 0.0F) {
      continue;  // it is kept but hidden
    }
    held += static_cast<double>(weights[p]);
  }
  double total = 0.0;
  for (auto p = static_cast<adore::position_t>(threadIdx.x); p <= now; p += kept_threads) {
    total += static_cast<double>(weights[p]);
  }
  held = reduce_sum(scratch).Sum(held);
  __syncthreads();
  total = reduce_sum(scratch).Sum(total);
  if (threadIdx.x == 0) sums[pair] += held / total;
}

}  // namespace detail

/// Adds one prediction of each row.
///
/// @param logits     [row, vocabulary], group after group, `sequences` rows each
/// @param came       [row] the tokens that came
/// @param summaries  [row] workspace
/// Stream: asynchronous.
inline void add_predictions_async(cudaStream_t stream,
                                  float const* logits,
                                  std::int32_t const* came,
                                  int rows,
                                  int vocabulary,
                                  int sequences,
                                  bool in_second_half,
                                  logits_summary* summaries,
                                  prediction_sums* sums) {
  auto const blocks = static_cast<unsigned>(rows);
  detail::summarise_kernel<<<blocks, detail::measure_threads, 0, stream>>>(
      logits, vocabulary, summaries);
  adore::gpu::check(cudaGetLastError());
  detail::score_kernel<<<blocks, detail::measure_threads, 0, stream>>>(
      logits, summaries, came, vocabulary, sequences, in_second_half, sums);
  adore::gpu::check(cudaGetLastError());
}

/// Adds the share of full attention's weight that the attended tokens of one layer hold, for each
/// row and KV head, once its step is at position `from` or later.
///
/// @param full  of a cache that never releases: it hands out slots in the order of arrival, so that
///              a position is an index
/// @param of    before the layer's decision, if the cache releases anything
/// @param own   weights after the attention, for a cache that hides what it keeps; else empty
/// @param sums  [row, kv_head]
/// Stream: asynchronous, capturable.
inline void add_kept_weight_async(cudaStream_t stream,
                                  llama_example::gpu::layer_weights_view const& full,
                                  llama_example::gpu::layer_positions const& of,
                                  llama_example::gpu::layer_weights_view const& own,
                                  adore::position_t from,
                                  double* sums) {
  detail::kept_weight_kernel<<<static_cast<unsigned>(of.row_count * of.kv_heads),
                               detail::kept_threads,
                               0,
                               stream>>>(full, of, own, from, sums);
  adore::gpu::check(cudaGetLastError());
}

}  // namespace comparison
