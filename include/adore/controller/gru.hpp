// SPDX-License-Identifier: Apache-2.0
// A gated recurrent unit: one cell, in both conventions, and its scan over many tokens.
#pragma once

#include "adore/controller/linear.hpp"
#include "adore/controller/options.hpp"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace adore {

template <class Real>
ADORE_HOST_DEVICE inline Real sigmoid(Real x) noexcept {
  return Real{1} / (Real{1} + std::exp(-x));
}

/// What the input, or the state, adds to the three gates of one unit, biases included.
template <class Real>
struct gate_sums {
  Real reset, update, candidate;
};

/// One unit of the new state in PyTorch's convention; `previous` is that unit of the old state.
template <class Real>
ADORE_HOST_DEVICE inline Real gru_unit(gate_sums<Real> input,
                                       gate_sums<Real> state,
                                       Real previous) noexcept {
  Real const reset = sigmoid(input.reset + state.reset);
  Real const update = sigmoid(input.update + state.update);
  Real const candidate = std::tanh(input.candidate + reset * state.candidate);
  return (Real{1} - update) * candidate + update * previous;
}
/// ... in Cho's, where state.candidate comes from the state that was reset before the product.
template <class Real>
ADORE_HOST_DEVICE inline Real gru_unit_cho(gate_sums<Real> input,
                                           gate_sums<Real> state,
                                           Real previous) noexcept {
  Real const update = sigmoid(input.update + state.update);
  Real const candidate = std::tanh(input.candidate + state.candidate);
  return (Real{1} - update) * previous + update * candidate;
}

/// The recurrent part of a GRU, over weights that someone else owns. Real is float; in double it
/// can be checked to more digits.
///
/// Source: PyTorch's torch.nn.GRU, gates stacked as reset, update, candidate; Cho et al. 2014,
///         arXiv:1406.1078, whose update gate is the other way round. Cho's form has one bias, here
///         the sum of both.
/// Cost:   3 hidden^2 multiplications and 3 hidden exponentials a token.
template <class Real>
struct gru_cell {
  gru_form form = gru_form::pytorch;
  index_t hidden = 0;
  Real const* hidden_weight = nullptr;  ///< [3 hidden, hidden]; not read by gru_form::none
  Real const* hidden_bias = nullptr;    ///< [3 hidden]; likewise

  /// Turns the state before a token into the one after it.
  ///
  /// @param input    [3 hidden] W_i x + b_i; [hidden] for gru_form::none
  /// @param state    [hidden], read and written
  /// @param scratch  [3 hidden]
  void step(Real const* input, Real* state, Real* scratch) const noexcept {
    if (form == gru_form::none) {
      std::copy_n(input, hidden, state);
    } else if (form == gru_form::pytorch) {
      row_by_row{}(hidden_weight, 3 * hidden, hidden, state, 1, scratch);
      for (index_t unit = 0; unit < hidden; ++unit) {
        state[unit] = gru_unit(at(input, unit), sums(scratch, unit), state[unit]);
      }
    } else {
      step_cho(input, state, scratch);
    }
  }

 private:
  gate_sums<Real> at(Real const* gates, index_t unit) const noexcept {
    return {gates[unit], gates[hidden + unit], gates[2 * hidden + unit]};
  }
  gate_sums<Real> sums(Real const* products, index_t unit) const noexcept {
    gate_sums<Real> const product = at(products, unit);
    gate_sums<Real> const bias = at(hidden_bias, unit);
    return {product.reset + bias.reset,
            product.update + bias.update,
            product.candidate + bias.candidate};
  }
  void step_cho(Real const* input, Real* state, Real* scratch) const noexcept {
    Real* const reset_state = scratch + static_cast<std::ptrdiff_t>(2) * hidden;
    row_by_row{}(hidden_weight, 2 * hidden, hidden, state, 1, scratch);
    for (index_t unit = 0; unit < hidden; ++unit) {
      reset_state[unit] = sigmoid(input[unit] + scratch[unit] + hidden_bias[unit]) * state[unit];
    }
    // the gate is used up: the candidate's product takes its place
    Real const* const candidate_weight =
        hidden_weight + static_cast<std::ptrdiff_t>(2) * hidden * hidden;
    row_by_row{}(candidate_weight, hidden, hidden, reset_state, 1, scratch);
    for (index_t unit = 0; unit < hidden; ++unit) {
      gate_sums<Real> const bias = at(hidden_bias, unit);
      gate_sums<Real> const from_state{
          Real{0}, scratch[hidden + unit] + bias.update, scratch[unit] + bias.candidate};
      state[unit] = gru_unit_cho(at(input, unit), from_state, state[unit]);
    }
  }
};

/// Runs a cell over many tokens: states[token] is the state after that token.
///
/// @param inputs   [token, rows] as `gru_cell::step` takes one of them
/// @param before   [hidden] state before the first token; may stand right before `states`
/// @param states   [token, hidden]
/// @param scratch  [3 hidden]
template <class Real>
void scan(gru_cell<Real> const& cell,
          Real const* inputs,
          index_t rows,
          index_t tokens,
          Real const* before,
          Real* states,
          Real* scratch) noexcept {
  for (index_t token = 0; token < tokens; ++token) {
    std::copy_n(before, cell.hidden, states);
    cell.step(inputs, states, scratch);
    inputs += rows;
    before = states;
    states += cell.hidden;
  }
}

}  // namespace adore
