// SPDX-License-Identifier: Apache-2.0
// The controller of ADORE on the device: hears one token per row and step, and scores the tokens.
#pragma once

#include "adore/controller/score_head.hpp"
#include "adore/controller/weights.hpp"
#include "adore/gpu/controller_step.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/token_scores.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::gpu {

/// The same scores as `adore::controller`, up to rounding, for all rows of a cache at once.
///
/// The product with the embeddings is tabulated for the whole vocabulary at construction: a step
/// looks it up.
/// Cost:   a step of the static mode is one small kernel, else two; the second reads 4 hidden bytes
///         per token of the text.
/// Memory: device memory at construction: 4 gate rows bytes per vocabulary entry; where scores
///         change, 4 hidden bytes per row and token (bilinear twice that).
class device_controller {
 public:
  /// @param embeddings  [vocabulary, inputs], device memory; read here only
  /// @param tokens      of the longest sequence
  /// @throws std::invalid_argument for a bidirectional controller, which runs on the host only, or
  ///         more than 256 hidden channels; cuda_error
  template <class T>
  device_controller(controller_weights const& weights,
                    T const* embeddings,
                    index_t vocabulary,
                    index_t rows,
                    index_t tokens)
      : rows_(rows) {
    weights.validate();
    if (weights.goes_back()) {
      throw std::invalid_argument(
          "adore: device_controller: score_mode bidirectional runs on the host only");
    }
    if (weights.hidden > 256) {
      throw std::invalid_argument(
          "adore: device_controller: hidden = " + std::to_string(weights.hidden) + ": at most 256");
    }
    view_.options = weights.options;
    view_.inputs = weights.inputs;
    view_.hidden = weights.hidden;
    view_.outputs = weights.outputs;
    view_.gate_rows = weights.gate_rows();
    view_.tokens = tokens;
    auto const size = [](index_t count) { return static_cast<std::size_t>(count); };
    auto const d = size(weights.hidden);
    auto const gates = size(view_.gate_rows);
    auto const transposed = [](std::vector<float> const& from, std::size_t out, std::size_t in) {
      std::vector<float> to(from.size());
      for (std::size_t o = 0; o < out && !from.empty(); ++o) {
        for (std::size_t i = 0; i < in; ++i) to[i * out + o] = from[o * in + i];
      }
      return to;
    };
    score_head const head{weights};
    std::vector<float> slope(d), bias(d), zero(d, 0.0F), scratch(d);
    head.slope(slope.data());
    head.value(zero.data(), 0.0F, scratch.data(), bias.data());
    std::vector<float> all;
    auto const add = [&](std::vector<float> const& part) {
      std::size_t const begin = all.size();
      all.insert(all.end(), part.begin(), part.end());
      return begin;
    };
    std::size_t const hidden_weight = add(transposed(weights.forward.hidden_weight, gates, d));
    std::size_t const hidden_bias = add(weights.forward.hidden_bias);
    std::size_t const interaction = add(transposed(weights.interaction.weight, d, d));
    std::size_t const of_bias = add(bias);
    std::size_t const of_slope = add(slope);
    std::size_t query = 0;
    bool const bilinear = weights.options.mode == score_mode::bilinear;
    bool const conditioned = weights.options.mode == score_mode::query_conditioned;
    if (conditioned) query = add(transposed(weights.query, d, d));
    if (bilinear) {
      std::vector<float> scaled = weights.bilinear;
      for (float& x : scaled) x /= std::sqrt(static_cast<float>(weights.hidden));
      query = add(scaled);
    }
    std::size_t const output = add(weights.output.weight);
    std::size_t const output_bias = add(weights.output.bias);
    weights_ = device_buffer<float>(std::span<float const>(all));
    view_.hidden_weight = weights_.data() + hidden_weight;
    view_.hidden_bias = weights_.data() + hidden_bias;
    view_.interaction = weights_.data() + interaction;
    view_.bias = weights_.data() + of_bias;
    view_.slope = weights_.data() + of_slope;
    if (conditioned || bilinear) view_.query = weights_.data() + query;
    view_.output = weights_.data() + output;
    view_.output_bias = weights_.data() + output_bias;

    states_ = device_buffer<float>(2 * size(rows) * d);
    view_.states = states_.data();
    view_.current = states_.data() + size(rows) * d;
    std::size_t const history = size(rows) * size(tokens) * d;
    if (weights.options.rescores()) {
      history_ = device_buffer<float>(bilinear ? 2 * history : history);
      view_.values = history_.data();
      if (bilinear) view_.history = history_.data() + history;
    }
    logits_ = device_buffer<float>(size(rows) * size(weights.outputs) * size(tokens));
    view_.logits = logits_.data();
    check(cudaMemset(logits_.data(), 0, logits_.bytes()));
    check(cudaMemset(states_.data(), 0, states_.bytes()));
    check(cudaMemset(history_.data(), 0, history_.bytes()));

    device_buffer<float> const input(std::span<float const>(
        transposed(weights.forward.input_weight, gates, size(weights.inputs))));
    device_buffer<float> const input_bias(std::span<float const>(weights.forward.input_bias));
    products_ = device_buffer<float>(size(vocabulary) * gates);
    view_.products = products_.data();
    detail::input_products_kernel<<<static_cast<unsigned>((vocabulary + 7) / 8), 384>>>(
        embeddings,
        vocabulary,
        weights.inputs,
        view_.gate_rows,
        weights.options.input == input_scaling::rms,
        input.data(),
        input_bias.data(),
        products_.data());
    check(cudaGetLastError());
    check(cudaDeviceSynchronize());
  }

  bool rescores() const noexcept { return view_.values != nullptr; }
  index_t outputs() const noexcept { return view_.outputs; }
  scores_view scores() const noexcept { return {view_.logits, view_.outputs, view_.tokens}; }
  /// Where the logits are written, [row, output, token]; they may be somewhere else.
  void write_to(float* logits) noexcept { view_.logits = logits; }

  /// Hears the step's new token of each row, and brings the logits up to date. A sequence is heard
  /// from its first token on: a row that goes on from a snapshot must be heard anew.
  ///
  /// @param ids  [row] vocabulary ids; rows whose `count` is 0 are not read
  /// @throws std::logic_error if steps bring several tokens or the ledger has other rows
  /// Stream: asynchronous, capturable. Memory: none.
  template <eviction_policy P>
  void step_async(cudaStream_t stream, ledger_view<P> const& ledger, index_t const* ids) {
    if (ledger.max_new != 1 || ledger.row_count != rows_) {
      throw std::logic_error("adore: device_controller: made for " + std::to_string(rows_) +
                             " rows of one new token, the ledger has " +
                             std::to_string(ledger.row_count) + " of " +
                             std::to_string(ledger.max_new));
    }
    if (rows_ == 0) return;
    std::size_t const shared =
        sizeof(float) * static_cast<std::size_t>(3 * view_.hidden + 2 * view_.gate_rows);
    detail::hear_kernel<<<static_cast<unsigned>(rows_), detail::hear_threads, shared, stream>>>(
        view_, ledger.rows, ids);
    check(cudaGetLastError());
    if (!rescores()) return;
    dim3 const grid(static_cast<unsigned>((view_.tokens + detail::tokens_per_block - 1) /
                                          detail::tokens_per_block),
                    static_cast<unsigned>(rows_));
    detail::score_kernel<<<grid, detail::score_warps * warp_threads, 0, stream>>>(view_,
                                                                                  ledger.rows);
    check(cudaGetLastError());
  }

  /// `to` has heard what `from` has; goes with the ledger's `fork_async`.
  ///
  /// Stream: asynchronous. Memory: none.
  void fork_async(cudaStream_t stream, index_t from, index_t to) {
    auto const hidden = static_cast<std::size_t>(view_.hidden);
    auto const tokens = static_cast<std::size_t>(view_.tokens);
    detail::copy_row_async(stream, view_.states, hidden, from, to);
    detail::copy_row_async(stream, view_.current, hidden, from, to);
    if (view_.values != nullptr) {
      detail::copy_row_async(stream, view_.values, tokens * hidden, from, to);
    }
    if (view_.history != nullptr) {
      detail::copy_row_async(stream, view_.history, tokens * hidden, from, to);
    }
    detail::copy_row_async(
        stream, view_.logits, static_cast<std::size_t>(view_.outputs) * tokens, from, to);
  }

 private:
  controller_view view_;
  index_t rows_;
  device_buffer<float> weights_, products_, states_, history_, logits_;
};

}  // namespace adore::gpu
