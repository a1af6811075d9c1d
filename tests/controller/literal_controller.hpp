// SPDX-License-Identifier: Apache-2.0
// A controller's scores by its formulas, in double and from the first token at every call. It takes
// the library's weights and shares no arithmetic with it.
#pragma once

#include "adore/controller/weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace literal {

using numbers = std::vector<double>;

inline numbers product(std::vector<float> const& weight, numbers const& x) {
  numbers result(weight.size() / x.size(), 0.0);
  for (std::size_t row = 0; row < result.size(); ++row) {
    for (std::size_t k = 0; k < x.size(); ++k) {
      result[row] += double{weight[row * x.size() + k]} * x[k];
    }
  }
  return result;
}
inline numbers sum(numbers a, numbers const& b) {
  for (std::size_t k = 0; k < a.size(); ++k) a[k] += b[k];
  return a;
}
inline numbers wide(std::vector<float> const& x) {
  return {x.begin(), x.end()};
}
inline double logistic(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

class controller {
 public:
  explicit controller(adore::controller_weights weights) : w_(std::move(weights)) {}

  /// [output][token] logits of the tokens x_0 .. x_n when token n is the newest.
  std::vector<numbers> logits(std::vector<std::vector<float>> const& embeddings) const {
    using mode = adore::score_mode;
    auto const count = embeddings.size();
    auto z = states(w_.forward, embeddings, false);
    if (w_.options.mode == mode::bidirectional) {
      auto const back = states(w_.backward, embeddings, true);
      for (std::size_t i = 0; i < count; ++i) {
        auto both = z[i];
        both.insert(both.end(), back[i].begin(), back[i].end());
        z[i] = sum(product(w_.merge.weight, both), wide(w_.merge.bias));
      }
    }
    std::vector<numbers> result(static_cast<std::size_t>(w_.outputs), numbers(count));
    for (std::size_t i = 0; i < count; ++i) {
      auto p = wide(w_.position.bias);
      for (std::size_t k = 0; k < p.size(); ++k) {
        p[k] += double{w_.position.weight[k]} * position(i, count - 1);
      }
      auto t = sum(product(w_.interaction.weight, sum(p, z[i])), wide(w_.interaction.bias));
      if (w_.options.mode == mode::query_conditioned) t = sum(t, product(w_.query, z.back()));
      for (double& x : t) x = std::tanh(x);
      auto const of_token = sum(product(w_.output.weight, t), wide(w_.output.bias));
      double joint = 0.0;
      if (w_.options.mode == mode::bilinear) {
        auto const projected = product(w_.bilinear, z[i]);
        for (std::size_t k = 0; k < projected.size(); ++k) joint += z.back()[k] * projected[k];
        joint /= std::sqrt(static_cast<double>(w_.hidden));
      }
      for (std::size_t o = 0; o < result.size(); ++o) result[o][i] = of_token[o] + joint;
    }
    return result;
  }

 private:
  double position(std::size_t token, std::size_t newest) const {
    using feature = adore::position_feature;
    auto const i = static_cast<double>(token);
    auto const n = static_cast<double>(newest);
    double const longest = w_.options.max_length;
    switch (w_.options.position) {
      case feature::index_over_max:
        return i / longest;
      case feature::raw:
        return i;
      case feature::log1p:
        return std::log(1.0 + i);
      case feature::index_over_length:
        return i / std::max(n, 1.0);
      case feature::distance:
        return (n - i) / longest;
    }
    return 0.0;
  }

  std::vector<numbers> states(adore::gru_weights const& w,
                              std::vector<std::vector<float>> const& embeddings,
                              bool backwards) const {
    auto const d = static_cast<std::size_t>(w_.hidden);
    std::vector<numbers> result(embeddings.size());
    numbers z(d, 0.0);
    for (std::size_t step = 0; step < embeddings.size(); ++step) {
      std::size_t const i = backwards ? embeddings.size() - 1 - step : step;
      auto x = wide(embeddings[i]);
      if (w_.options.input == adore::input_scaling::rms) {
        double squares = 0.0;
        for (double const c : x) squares += c * c;
        for (double& c : x) c /= std::sqrt(squares / static_cast<double>(w_.inputs) + 1e-6);
      }
      auto const a = sum(product(w.input_weight, x), wide(w.input_bias));
      z = w_.options.gru == adore::gru_form::none ? a : cell(w, a, z);
      result[i] = z;
    }
    return result;
  }

  numbers cell(adore::gru_weights const& w, numbers const& a, numbers const& z) const {
    auto const d = z.size();
    bool const cho = w_.options.gru == adore::gru_form::cho;
    auto const h = sum(product(w.hidden_weight, z), wide(w.hidden_bias));
    numbers reset(d);
    numbers reset_z(d);
    for (std::size_t k = 0; k < d; ++k) {
      reset[k] = logistic(a[k] + h[k]);
      reset_z[k] = reset[k] * z[k];
    }
    auto const h_cho = sum(product(w.hidden_weight, reset_z), wide(w.hidden_bias));
    numbers next(d);
    for (std::size_t k = 0; k < d; ++k) {
      double const u = logistic(a[d + k] + h[d + k]);
      double const n = std::tanh(a[2 * d + k] + (cho ? h_cho[2 * d + k] : reset[k] * h[2 * d + k]));
      next[k] = cho ? (1.0 - u) * z[k] + u * n : (1.0 - u) * n + u * z[k];
    }
    return next;
  }

  adore::controller_weights w_;
};

}  // namespace literal
