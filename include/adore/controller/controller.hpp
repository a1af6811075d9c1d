// SPDX-License-Identifier: Apache-2.0
// The controller of ADORE: reads the embeddings of the tokens and says of each how much it matters.
#pragma once

#include "adore/controller/gru.hpp"
#include "adore/controller/input_products.hpp"
#include "adore/controller/linear.hpp"
#include "adore/controller/score_head.hpp"
#include "adore/controller/state.hpp"
#include "adore/controller/weights.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adore {

/// Scores tokens by a GRU over the model's input embeddings, a position layer and a tanh.
///
/// In the static mode `hear` returns the logits of a token once and for all. In the others a score
/// depends on the newest token too, and `score` gives those of all tokens at the present step. All
/// members are const: one controller serves many sequences, from several threads.
///
/// Source:  arXiv:2407.02328, Eq. 2 and Appendix B; the modes of policies.md 15.
/// Differs: by default the position is divided by 4096: a raw one saturates the tanh.
/// Cost:    product_rows x inputs + 4 hidden^2 multiplications a token; `score` has its own.
class controller {
 public:
  /// @throws std::invalid_argument naming the tensor or option that does not fit the others
  explicit controller(controller_weights weights) : weights_(std::move(weights)) {
    weights_.validate();
    if (!changes_with_length(options().position)) return;
    slope_.resize(size(width()));
    head().slope(slope_.data());
  }

  controller_weights const& weights() const noexcept { return weights_; }
  controller_options const& options() const noexcept { return weights_.options; }

  /// State before the first token.
  controller_state start() const {
    controller_state state;
    state.recent.resize(size(width()));
    return state;
  }

  /// Hears the next tokens of one sequence, as the next function does.
  template <class Product = row_by_row>
  void hear(controller_state& state,
            std::span<float const> embeddings,  // [token, inputs]
            std::span<float> logits = {},       // [token, outputs]
            Product&& product = {}) const {
    controller_state* const one = &state;
    auto const tokens = static_cast<index_t>(embeddings.size() / size(weights_.inputs));
    hear(std::span(&one, 1), std::span(&tokens, 1), embeddings, logits, product);
  }
  /// Hears the next tokens of several sequences, any number of each.
  ///
  /// @param counts      new tokens of each sequence, zero included
  /// @param embeddings  [token, inputs] of all sequences, one after the other
  /// @param logits      [token, outputs] in the static mode, or empty; in the others empty
  /// @param product     see `row_by_row`. With that one the scores do not depend on how the tokens
  ///                    are divided into calls; with another as far as its sums do not.
  /// @throws std::logic_error if a size does not fit
  template <class Product = row_by_row>
  void hear(std::span<controller_state* const> states,
            std::span<index_t const> counts,
            std::span<float const> embeddings,
            std::span<float> logits = {},
            Product&& product = {}) const {
    hear_products(states, counts, input_products(weights_, embeddings, product), logits);
  }
  /// The same for embeddings whose `input_products`, [token, product_rows], are there already.
  void hear_products(std::span<controller_state* const> states,
                     std::span<index_t const> counts,
                     std::span<float const> products,
                     std::span<float> logits = {}) const {
    std::size_t tokens = 0;
    for (index_t const count : counts) tokens += size(count);
    require_sizes(states.size(), counts.size(), tokens, products.size(), logits.size());
    float const* input = products.data();
    float* out = logits.empty() ? nullptr : logits.data();
    for (std::size_t i = 0; i < states.size(); ++i) {
      hear_one(*states[i], input, counts[i], out);
      input += offset(counts[i], weights_.product_rows());
      if (out != nullptr) out += offset(counts[i], weights_.outputs);
    }
  }

  /// Logits of all tokens heard, at the present step; not for the static mode.
  ///
  /// Cost: tokens x hidden tanh and tokens x outputs x hidden multiplications. Bidirectional: the
  ///       backward GRU and the layers after it anew over the whole text, 6 hidden^2
  ///       multiplications more a token.
  ///
  /// @param logits  [output, token]
  /// @throws std::logic_error in the static mode, or if there is not room for exactly these
  void score(controller_state& state, std::span<float> logits) const {
    if (!options().rescores()) refuse("score() in the static mode: hear() gave the logits");
    if (logits.size() != size(weights_.outputs) * size(state.count)) {
      refuse("score has room for " + std::to_string(logits.size()) + " logits, expected " +
             std::to_string(weights_.outputs) + " outputs x " + std::to_string(state.count) +
             " tokens");
    }
    state.scratch.resize(scratch_size());
    if (weights_.goes_back()) {
      score_both_ways(state, logits.data());
    } else {
      score_values(state, logits.data());
    }
  }

  /// Takes back the last tokens, as if they had never been heard: a rejected draft.
  ///
  /// @throws std::logic_error if `count` is more than was heard, or reaches back before the last
  ///         call of `hear`
  void truncate(controller_state& state, index_t count) const {
    if (count < state.first || count > state.count) {
      refuse("truncate to " + std::to_string(count) + " tokens: expected " +
             std::to_string(state.first) + " to " + std::to_string(state.count) +
             ", which the last call of hear brought");
    }
    state.count = count;
    state.recent.resize(size(1 + count - state.first) * size(width()));
    auto const keep = [&](std::vector<float>& of_tokens, index_t row) {
      if (!of_tokens.empty()) of_tokens.resize(size(count) * size(row));
    };
    keep(state.values, width());
    keep(state.states, width());
    keep(state.backward_products, weights_.gate_rows());
  }

 private:
  static constexpr std::size_t size(index_t count) noexcept {
    return static_cast<std::size_t>(count);
  }
  static constexpr std::ptrdiff_t offset(index_t row, index_t width) noexcept {
    return static_cast<std::ptrdiff_t>(row) * width;
  }
  [[noreturn]] static void refuse(std::string const& what) {
    throw std::logic_error("adore: controller: " + what);
  }
  void require_sizes(std::size_t states,
                     std::size_t counts,
                     std::size_t tokens,
                     std::size_t products,
                     std::size_t logits) const {
    if (states != counts) {
      refuse(std::to_string(states) + " states with " + std::to_string(counts) + " counts");
    }
    if (products != tokens * size(weights_.product_rows())) {
      refuse(std::to_string(products) + " input products, expected " + std::to_string(tokens) +
             " tokens x " + std::to_string(weights_.product_rows()));
    }
    if (logits != 0 && options().rescores()) {
      refuse("hear gives no logits in mode " + std::string(word_of(options().mode)) +
             ": call score()");
    }
    if (logits != 0 && logits != tokens * size(weights_.outputs)) {
      refuse("hear has room for " + std::to_string(logits) + " logits, expected " +
             std::to_string(tokens) + " tokens x " + std::to_string(weights_.outputs));
    }
  }

  index_t width() const noexcept { return weights_.hidden; }
  score_head head() const noexcept { return {weights_}; }
  gru_cell<float> cell_of(gru_weights const& one) const noexcept {
    return {options().gru, width(), one.hidden_weight.data(), one.hidden_bias.data()};
  }
  // [part, hidden]: gates 0 1 2, a sum of one or both states 3 4, t 5, v or c 6, backward state 7
  std::size_t scratch_size() const noexcept { return 8 * size(width()); }
  float* scratch(controller_state& state, index_t part) const noexcept {
    return state.scratch.data() + offset(part, width());
  }

  void hear_one(controller_state& state,
                float const* products,
                index_t tokens,
                float* logits) const {
    if (tokens == 0) return;
    state.scratch.resize(scratch_size());
    std::copy_n(state.recent.end() - width(), width(), state.recent.begin());  // the newest z
    state.recent.resize(size(1 + tokens) * size(width()));
    float* const z = state.recent.data() + width();
    scan(cell_of(weights_.forward),
         products,
         weights_.product_rows(),
         tokens,
         z - width(),
         z,
         scratch(state, 0));
    if (weights_.keeps_states()) {
      state.states.insert(state.states.end(), z, z + offset(tokens, width()));
    }
    for (index_t j = 0; j < tokens; ++j) {
      float const* const input = products + offset(j, weights_.product_rows());
      hear_state(state, state.count + j, z + offset(j, width()), input);
      if (logits != nullptr) {
        head().logits(scratch(state, 6), logits + offset(j, weights_.outputs), 1);
      }
    }
    state.first = state.count;
    state.count += tokens;
  }
  /// Keeps what the mode needs of a token; its value is in part 6 of the scratch memory afterwards.
  void hear_state(controller_state& state,
                  position_t token,
                  float const* z,
                  float const* input) const {
    if (weights_.goes_back()) {
      float const* const backward = input + weights_.gate_rows();
      state.backward_products.insert(
          state.backward_products.end(), backward, backward + weights_.gate_rows());
      return;
    }
    float* const v = scratch(state, 6);
    head().value(
        z, slope_.empty() ? position_value(options(), token, token) : 0.0F, scratch(state, 3), v);
    if (options().rescores()) state.values.insert(state.values.end(), v, v + width());
  }

  void score_values(controller_state& state, float* logits) const {
    float const* const newest = state.recent.data() + offset(state.count - state.first, width());
    bool const is_bilinear = options().mode == score_mode::bilinear;
    bool const is_conditioned = options().mode == score_mode::query_conditioned;
    float* const t = scratch(state, 5);
    float* const current = scratch(state, 6);
    if (is_conditioned) head().condition(newest, current);
    if (is_bilinear) head().project(newest, current);
    for (position_t i = 0; i < state.count; ++i) {
      std::copy_n(state.values.data() + offset(i, width()), width(), t);
      if (is_conditioned) {
        for (std::size_t k = 0; k < size(width()); ++k) t[k] += current[k];
      }
      if (!slope_.empty()) {
        float const position = position_value(options(), i, state.count - 1);
        for (std::size_t k = 0; k < size(width()); ++k) t[k] += position * slope_[k];
      }
      head().logits(t, logits + i, state.count);
      if (!is_bilinear) continue;
      float const joint = dot(current, state.states.data() + offset(i, width()), width());
      for (index_t o = 0; o < weights_.outputs; ++o) logits[offset(o, state.count) + i] += joint;
    }
  }

  void score_both_ways(controller_state& state, float* logits) const {
    float* const both = scratch(state, 3);  // two parts
    float* const z = scratch(state, 5);
    float* const v = scratch(state, 6);
    float* const backward = scratch(state, 7);
    std::fill_n(backward, width(), 0.0F);
    gru_cell<float> const cell = cell_of(weights_.backward);
    for (position_t i = state.count; i-- > 0;) {
      float const* const input = state.backward_products.data() + offset(i, weights_.gate_rows());
      cell.step(input, backward, scratch(state, 0));
      std::copy_n(state.states.data() + offset(i, width()), width(), both);
      std::copy_n(backward, width(), both + width());
      head().merge(both, z);
      head().value(z, position_value(options(), i, state.count - 1), both, v);
      head().logits(v, logits + i, state.count);
    }
  }

  controller_weights weights_;
  std::vector<float> slope_;  // [hidden] where the position moves with the newest token, else empty
};

}  // namespace adore
