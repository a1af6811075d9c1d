// SPDX-License-Identifier: Apache-2.0
// Which keys a query attends most: the sets of dynamic top-K attention, and one set for a model.
#pragma once

#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// Marks the `count` largest scores; among equals the newest.
///
/// @param scores    [token] in ascending position
/// @param selected  out, [token], 1 for the chosen
/// @param always_last  the last token counts among the chosen whatever its score
inline void mark_top_k(std::span<float const> scores,
                       index_t count,
                       bool always_last,
                       std::span<std::uint8_t> selected) {
  auto const n = static_cast<index_t>(scores.size());
  if (count >= n) {
    std::fill(selected.begin(), selected.end(), std::uint8_t{1});
    return;
  }
  std::fill(selected.begin(), selected.end(), std::uint8_t{0});
  index_t const ranked = always_last ? n - 1 : n;
  index_t const wanted = always_last ? count - 1 : count;
  if (always_last) selected[static_cast<std::size_t>(n - 1)] = 1;
  if (wanted <= 0) return;
  std::vector<std::pair<std::uint64_t, index_t>> keys;
  keys.reserve(static_cast<std::size_t>(ranked));
  for (index_t i = 0; i < ranked; ++i) {
    keys.emplace_back(order_key(scores[static_cast<std::size_t>(i)], i), i);
  }
  std::nth_element(keys.begin(), keys.end() - wanted, keys.end());
  for (auto k = keys.end() - wanted; k != keys.end(); ++k) {
    selected[static_cast<std::size_t>(k->second)] = 1;
  }
}

/// One set of `count` tokens for all layers: those that stand most often among the count / 2 most
/// attended tokens of a layer, then by attention summed over the layers, then the newest.
///
/// Source: arXiv:2407.02328, section 2.3 and appendix C, for one query; policies.md 10.
/// @param weights  [layer][token], mean over heads of full attention's probabilities
/// @return positions, best first
inline std::vector<position_t> uniform_top_k(std::span<std::vector<float> const> weights,
                                             index_t count) {
  std::size_t const tokens = weights.empty() ? 0 : weights.front().size();
  std::vector<index_t> votes(tokens, 0);
  std::vector<float> mass(tokens, 0.0F);
  std::vector<std::uint8_t> selected(tokens);
  for (std::vector<float> const& layer : weights) {
    mark_top_k(layer, count / 2, false, selected);
    for (std::size_t j = 0; j < tokens; ++j) {
      votes[j] += selected[j];
      mass[j] += layer[j];
    }
  }
  std::vector<position_t> order;
  for (std::size_t j = 0; j < tokens; ++j) order.push_back(static_cast<position_t>(j));
  std::sort(order.begin(), order.end(), [&](position_t a, position_t b) {
    auto const i = static_cast<std::size_t>(a);
    auto const j = static_cast<std::size_t>(b);
    if (votes[i] != votes[j]) return votes[i] > votes[j];
    return order_key(mass[i], a) > order_key(mass[j], b);
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
  return order;
}

}  // namespace adore
