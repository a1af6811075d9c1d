// SPDX-License-Identifier: Apache-2.0
// Which keys a query attends most: the sets of dynamic top-K attention.
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

}  // namespace adore
