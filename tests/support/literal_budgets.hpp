// SPDX-License-Identifier: Apache-2.0
// Budgets per layer (PyramidKV) and per head (Ada-KV), in exact integer arithmetic. All of them
// count prefix tokens; the observation window comes on top.
#pragma once

#include "literal_order.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace literal {

/// Shares numerators[i] / denominator rounded to integers whose sum is `total`: floors first, then
/// one more each to the largest remainders. Equal remainders: lower index first (the papers do not
/// say; it keeps a non-increasing sequence non-increasing).
inline std::vector<int> largest_remainder(std::vector<long long> const& numerators,
                                          long long denominator,
                                          long long total) {
  std::vector<int> budgets;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < numerators.size(); ++i) {
    budgets.push_back(static_cast<int>(numerators[i] / denominator));
    total -= budgets.back();
    order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return numerators[a] % denominator > numerators[b] % denominator;
  });
  for (std::size_t i = 0; i < order.size() && total > 0; ++i, --total) ++budgets[order[i]];
  return budgets;
}

/// Linear from 2*base - base/beta (layer 0) to base/beta (last layer); the sum is layers * base.
inline std::vector<int> pyramid_exact(int base, int layers, int beta = 20) {
  if (beta < 1) throw std::invalid_argument("beta");
  if (base < beta) throw std::invalid_argument("the last layer's budget must be at least 1");
  if (layers == 1) return {base};
  // Over the common denominator beta * (layers - 1).
  long long const steps = layers - 1;
  long long const last = base * steps;
  long long const first = (2LL * beta - 1) * base * steps;
  std::vector<long long> numerators;
  for (long long l = 0; l < layers; ++l) numerators.push_back(first - l * (first - last) / steps);
  return largest_remainder(numerators, beta * steps, static_cast<long long>(layers) * base);
}

/// The published code's integer steps, for a prompt of n tokens; the sum is not layers * base.
inline std::vector<int> pyramid_repo(int capacity, int window, int layers, int n, int beta = 20) {
  if (beta < 1) throw std::invalid_argument("beta");
  int const base = capacity - window;
  auto const count = static_cast<std::size_t>(layers);
  if (n < capacity) return std::vector<int>(count, std::max(0, n - window));  // nothing is dropped
  if (n < 2 * base || layers == 1) return std::vector<int>(count, base);
  int lowest = base / beta;
  int highest = 2 * base - lowest;
  if (highest >= n - window) {
    highest = n - window;
    lowest = 2 * base - highest;
  }
  int const step = (highest - lowest) / (layers - 1);
  std::vector<int> budgets;
  for (int l = 0; l < layers; ++l) budgets.push_back(highest - l * step);
  return budgets;
}

/// f: how many of the layer's best heads * base scores each head has. Equal scores: newer position
/// first (the one order); equal in both: lower head first (the paper does not say).
inline std::vector<int> ada_counts(std::vector<std::vector<float>> const& scores, int base) {
  std::vector<std::tuple<float, int, std::size_t>> all;  // score, position, head
  for (std::size_t head = 0; head < scores.size(); ++head) {
    for (std::size_t j = 0; j < scores[head].size(); ++j) {
      all.emplace_back(scores[head][j], static_cast<int>(j), head);
    }
  }
  std::sort(all.begin(), all.end(), [](auto const& a, auto const& b) {
    auto const& [score_a, position_a, head_a] = a;
    auto const& [score_b, position_b, head_b] = b;
    if (is_lower(score_b, score_a)) return true;
    if (is_lower(score_a, score_b)) return false;
    return position_a != position_b ? position_a > position_b : head_a < head_b;
  });
  std::size_t const total = std::min(all.size(), scores.size() * static_cast<std::size_t>(base));
  std::vector<int> counts(scores.size(), 0);
  for (std::size_t i = 0; i < total; ++i) ++counts[std::get<2>(all[i])];
  return counts;
}

/// A share between 0 and 1, exact.
struct fraction {
  int numerator = 1;
  int denominator = 5;
};

/// Default: f (1 - floor) + floor * base, largest remainder, sum = heads * base.
inline std::vector<int> ada_budgets(std::vector<std::vector<float>> const& scores,
                                    int base,
                                    fraction floor = {}) {
  std::vector<long long> numerators;
  for (int const f : ada_counts(scores, base)) {
    numerators.push_back(static_cast<long long>(f) * (floor.denominator - floor.numerator) +
                         static_cast<long long>(base) * floor.numerator);
  }
  return largest_remainder(
      numerators, floor.denominator, static_cast<long long>(scores.size()) * base);
}

/// The author code: round(f (1 - floor) + whole part of floor * base), halves to even as
/// torch.round does; the sum may differ from heads * base.
inline std::vector<int> ada_budgets_code(std::vector<std::vector<float>> const& scores,
                                         int base,
                                         fraction floor = {}) {
  std::vector<int> budgets;
  int const fixed = base * floor.numerator / floor.denominator;
  for (int const f : ada_counts(scores, base)) {
    int const numerator = f * (floor.denominator - floor.numerator) + fixed * floor.denominator;
    int const whole = numerator / floor.denominator;
    int const twice_rest = 2 * (numerator % floor.denominator);
    bool const up =
        twice_rest > floor.denominator || (twice_rest == floor.denominator && whole % 2 == 1);
    budgets.push_back(whole + (up ? 1 : 0));
  }
  return budgets;
}

/// The paper's formula as quoted: alpha f + (1 - alpha) base, the roles of the two parts exchanged.
inline std::vector<int> ada_budgets_paper(std::vector<std::vector<float>> const& scores,
                                          int base,
                                          fraction alpha = {}) {
  return ada_budgets(scores, base, {alpha.denominator - alpha.numerator, alpha.denominator});
}

}  // namespace literal
