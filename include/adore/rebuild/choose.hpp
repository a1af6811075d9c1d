// SPDX-License-Identifier: Apache-2.0
// Which released tokens are computed again before a step: the best of them by score.
#pragma once

#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// Chooses the `count` released tokens that the library's order would release last: those of the
/// largest score, the newer of equals, a NaN last of all. Fewer if fewer are released.
///
/// Source: policies.md 13.1.
/// Cost:   linear in the tokens (a selection); 8 bytes of scratch memory per released token.
///
/// @param logits     [position] the scores of the tokens 0, 1, ... at this step
/// @param is_cached  [position] 0 for a released token
/// @param chosen     room for `count` positions; they come ascending
/// @return how many were chosen
/// @throws std::logic_error if the sizes do not fit one another
inline index_t choose_rebuilt(std::span<float const> logits,
                              std::span<std::uint8_t const> is_cached,
                              index_t count,
                              std::span<position_t> chosen) {
  if (logits.size() != is_cached.size()) {
    throw std::logic_error("adore: choose_rebuilt: " + std::to_string(logits.size()) +
                           " logits for " + std::to_string(is_cached.size()) + " tokens");
  }
  if (count < 0 || chosen.size() < static_cast<std::size_t>(count)) {
    throw std::logic_error("adore: choose_rebuilt: count = " + std::to_string(count) +
                           ": there is room for 0 to " + std::to_string(chosen.size()));
  }
  std::vector<std::uint64_t> keys;
  for (std::size_t p = 0; p < logits.size(); ++p) {
    if (is_cached[p] == 0) keys.push_back(order_key(logits[p], static_cast<position_t>(p)));
  }
  auto const found = std::min(keys.size(), static_cast<std::size_t>(count));
  auto const end = keys.begin() + static_cast<std::ptrdiff_t>(found);
  if (found < keys.size()) std::nth_element(keys.begin(), end, keys.end(), std::greater<>{});
  // the low half of a key is the position
  std::transform(keys.begin(), end, chosen.begin(), [](std::uint64_t key) {
    return static_cast<position_t>(static_cast<std::uint32_t>(key));
  });
  std::sort(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(found));
  return static_cast<index_t>(found);
}

}  // namespace adore
