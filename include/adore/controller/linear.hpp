// SPDX-License-Identifier: Apache-2.0
// A matrix times many tokens: the plain loop that a controller uses unless the engine hands it a
// better one. One token or a thousand, each result is summed in the same order.
#pragma once

#include "adore/types.hpp"

#include <cstddef>

namespace adore {

/// a . b in a fixed order: sixteen partial sums, which a compiler turns into vectors.
template <class Real>
constexpr Real dot(Real const* a, Real const* b, index_t count) noexcept {
  constexpr index_t lanes = 16;
  Real part[lanes] = {};
  index_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (index_t k = 0; k < lanes; ++k) part[k] += a[i + k] * b[i + k];
  }
  for (index_t k = 0; i + k < count; ++k) part[k] += a[i + k] * b[i + k];
  for (index_t half = lanes / 2; half > 0; half /= 2) {
    for (index_t k = 0; k < half; ++k) part[k] += part[k + half];
  }
  return part[0];
}

/// out[token, row] = weight[row] . input[token]. An engine may pass its own function of this
/// signature, e.g. one call of its BLAS: input x weight^T.
struct row_by_row {
  template <class Real>
  constexpr void operator()(Real const* weight,  // [rows, columns]
                            index_t rows,
                            index_t columns,
                            Real const* input,  // [tokens, columns]
                            index_t tokens,
                            Real* out) const noexcept {  // [tokens, rows]
    constexpr index_t block = 8;  // tokens that stay in the cache while all weights pass by
    for (index_t first = 0; first < tokens; first += block) {
      index_t const end = first + block < tokens ? first + block : tokens;
      for (index_t row = 0; row < rows; ++row) {
        Real const* const weights = weight + static_cast<std::ptrdiff_t>(row) * columns;
        for (index_t token = first; token < end; ++token) {
          out[static_cast<std::ptrdiff_t>(token) * rows + row] =
              dot(weights, input + static_cast<std::ptrdiff_t>(token) * columns, columns);
        }
      }
    }
  }
};

}  // namespace adore
