// SPDX-License-Identifier: Apache-2.0
// The part of a controller's work that needs no order: the input weights times the embeddings, for
// one token, a prompt, a batch, or a whole vocabulary at once.
#pragma once

#include "adore/controller/linear.hpp"
#include "adore/controller/weights.hpp"
#include "adore/types.hpp"

#include <cmath>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// [token, product_rows] W_i x + b_i of each embedding, of both directions if there are two.
///
/// Of a whole vocabulary it is a table that saves the product: 4 product_rows bytes an entry. That
/// is less than a controller must otherwise reach, embeddings and input weights, where product_rows
/// <= inputs; and less than the input weights alone where the vocabulary is smaller than the
/// embedding.
///
/// Cost: product_rows x inputs multiplications a token.
///
/// @param embeddings  [token, inputs]
/// @param product     see `row_by_row`
/// @throws std::logic_error unless there is a whole number of embeddings
template <class Product = row_by_row>
std::vector<float> input_products(controller_weights const& weights,
                                  std::span<float const> embeddings,
                                  Product&& product = {}) {
  auto const width = static_cast<std::size_t>(weights.inputs);
  if (embeddings.size() % width != 0) {
    throw std::logic_error("adore: controller: embeddings have " +
                           std::to_string(embeddings.size()) + " numbers, expected a multiple of " +
                           std::to_string(width));
  }
  std::size_t const tokens = embeddings.size() / width;
  std::vector<float> scale(tokens, 1.0F);
  if (weights.options.input == input_scaling::rms) {
    for (std::size_t i = 0; i < tokens; ++i) {
      float const* const x = embeddings.data() + i * width;
      float const mean = dot(x, x, weights.inputs) / static_cast<float>(weights.inputs);
      scale[i] = 1.0F / std::sqrt(mean + 1e-6F);
    }
  }
  auto const rows = static_cast<std::size_t>(weights.gate_rows());
  auto const stride = static_cast<std::size_t>(weights.product_rows());
  std::vector<float> result(tokens * stride);
  std::vector<float> sums(tokens * rows);
  for (std::size_t first = 0; first < stride; first += rows) {
    gru_weights const& one = first == 0 ? weights.forward : weights.backward;
    product(one.input_weight.data(),
            weights.gate_rows(),
            weights.inputs,
            embeddings.data(),
            static_cast<index_t>(tokens),
            sums.data());
    for (std::size_t i = 0; i < tokens; ++i) {
      float* const out = result.data() + i * stride + first;
      for (std::size_t row = 0; row < rows; ++row) {
        // a scaled embedding has a scaled product
        out[row] = sums[i * rows + row] * scale[i] + one.input_bias[row];
      }
    }
  }
  return result;
}

}  // namespace adore
