// SPDX-License-Identifier: Apache-2.0
// The one strict total order by which everything is chosen, and "the k greatest" in that order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

namespace literal {

/// One query: position -> attention weight (heads already reduced), over the attended positions.
using row = std::map<int, float>;

inline constexpr int unbounded = std::numeric_limits<int>::max();

/// Releases an unprotected token at the end of the step, even below budget.
inline constexpr float keep_never = -std::numeric_limits<float>::infinity();

enum class tie { evict_oldest, evict_newest };

/// On the bits, so that -ffast-math cannot remove the test.
inline bool is_nan(float x) {
  return (std::bit_cast<std::uint32_t>(x) & 0x7fffffffU) > 0x7f800000U;
}

/// NaN is below -inf and equal to NaN; -0 equals +0 (IEEE comparison already says so).
inline bool is_lower(float a, float b) {
  if (is_nan(a) || is_nan(b)) return is_nan(a) && !is_nan(b);
  return a < b;
}

/// Does token a leave before token b? Lower priority first; among equals the oldest
/// (`evict_newest` flips only this second part).
inline bool leaves_before(float priority_a, int a, float priority_b, int b, tie ties) {
  if (is_lower(priority_a, priority_b)) return true;
  if (is_lower(priority_b, priority_a)) return false;
  return ties == tie::evict_oldest ? a < b : a > b;
}

/// The k greatest of `scores` (all of them if there are fewer), best first; ties: newer is better.
inline std::vector<int> top(int k, std::map<int, float> const& scores) {
  std::vector<int> order;
  for (auto const& [position, score] : scores) order.push_back(position);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return leaves_before(scores.at(b), b, scores.at(a), a, tie::evict_oldest);
  });
  if (order.size() > static_cast<std::size_t>(k)) order.resize(static_cast<std::size_t>(k));
  return order;
}

}  // namespace literal
