// SPDX-License-Identifier: Apache-2.0
// From a token's state to its score: the layers of a controller after its recurrence.
#pragma once

#include "adore/controller/linear.hpp"
#include "adore/controller/options.hpp"
#include "adore/controller/tanh.hpp"
#include "adore/controller/weights.hpp"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace adore {

/// What the position layer is given for `token` when `newest` is the newest one.
ADORE_HOST_DEVICE inline float position_value(controller_options const& options,
                                              position_t token,
                                              position_t newest) noexcept {
  auto const i = static_cast<float>(token);
  switch (options.position) {
    case position_feature::index_over_max:
      return i / static_cast<float>(options.max_length);
    case position_feature::raw:
      return i;
    case position_feature::log1p:
      return std::log1p(i);
    case position_feature::index_over_length:
      return i / static_cast<float>(newest > 1 ? newest : 1);
    case position_feature::distance:
      return static_cast<float>(newest - token) / static_cast<float>(options.max_length);
  }
  return 0.0F;
}

/// The layers after the recurrence, over weights that someone else owns.
///
/// A score is W_o tanh(v + c) + b_o. The value v = W_I (p + z) + b_I, p = W_p position + b_p, is
/// the token's own; c moves with the newest token.
struct score_head {
  controller_weights const& weights;

  /// v of a token.
  ///
  /// @param z    [hidden]
  /// @param sum  [hidden] scratch
  void value(float const* z, float position, float* sum, float* v) const noexcept {
    for (std::size_t k = 0; k < width(); ++k) {
      sum[k] = position * weights.position.weight[k] + weights.position.bias[k] + z[k];
    }
    row_by_row{}(weights.interaction.weight.data(), weights.hidden, weights.hidden, sum, 1, v);
    for (std::size_t k = 0; k < width(); ++k) v[k] += weights.interaction.bias[k];
  }
  /// W_I W_p: how v moves with the position.
  void slope(float* of_position) const noexcept {
    row_by_row{}(weights.interaction.weight.data(),
                 weights.hidden,
                 weights.hidden,
                 weights.position.weight.data(),
                 1,
                 of_position);
  }
  /// logits[output x stride] of a token whose v, and c, are summed up already.
  ///
  /// @param sum  [hidden]; its tanh afterwards
  void logits(float* sum, float* out, index_t stride) const noexcept {
    tanh_of_each(sum, weights.hidden);
    for (index_t o = 0; o < weights.outputs; ++o) {
      float const* const row =
          weights.output.weight.data() + static_cast<std::ptrdiff_t>(o) * weights.hidden;
      out[static_cast<std::ptrdiff_t>(o) * stride] =
          dot(row, sum, weights.hidden) + weights.output.bias[static_cast<std::size_t>(o)];
    }
  }

  /// c of the query-conditioned mode: W_c z_n.
  void condition(float const* newest, float* c) const noexcept {
    row_by_row{}(weights.query.data(), weights.hidden, weights.hidden, newest, 1, c);
  }
  /// M^T z_n / sqrt(hidden): its product with z_i is what the bilinear mode adds.
  void project(float const* newest, float* projected) const noexcept {
    std::fill_n(projected, weights.hidden, 0.0F);
    for (std::size_t k = 0; k < width(); ++k) {
      float const* const row = weights.bilinear.data() + k * width();
      for (std::size_t j = 0; j < width(); ++j) projected[j] += newest[k] * row[j];
    }
    float const root = std::sqrt(static_cast<float>(weights.hidden));
    for (std::size_t j = 0; j < width(); ++j) projected[j] /= root;
  }
  /// One state of both directions' states.
  ///
  /// @param both  [2 hidden] forward, backward
  void merge(float const* both, float* z) const noexcept {
    row_by_row{}(weights.merge.weight.data(), weights.hidden, 2 * weights.hidden, both, 1, z);
    for (std::size_t k = 0; k < width(); ++k) z[k] += weights.merge.bias[k];
  }

 private:
  std::size_t width() const noexcept { return static_cast<std::size_t>(weights.hidden); }
};

}  // namespace adore
