// SPDX-License-Identifier: Apache-2.0
// The one strict total order of all selections: by priority, then by position, smallest released
// first. Works on the bits, so that fast-math flags of the including engine cannot change it.
#pragma once

#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore {

/// A float's bits. (A function of its own: nvcc fails inside on the builtin in a template's body.)
ADORE_HOST_DEVICE constexpr std::uint32_t priority_bits(float priority) noexcept {
  return __builtin_bit_cast(std::uint32_t, priority);
}
ADORE_HOST_DEVICE constexpr float priority_of_bits(std::uint32_t bits) noexcept {
  return __builtin_bit_cast(float, bits);
}

/// Maps a priority to an integer of the same order: -0 equals +0, NaN comes before -infinity.
ADORE_HOST_DEVICE constexpr std::int32_t ordered_priority(float priority) noexcept {
  auto const bits = __builtin_bit_cast(std::int32_t, priority);
  std::int32_t const magnitude = bits & 0x7FFFFFFF;
  constexpr std::int32_t infinity = 0x7F800000;
  std::int32_t const ordered = bits < 0 ? -magnitude : magnitude;
  return magnitude > infinity ? (-0x7FFFFFFF - 1) : ordered;
}

/// Its inverse, but for NaN.
ADORE_HOST_DEVICE constexpr float priority_of_ordered(std::int32_t ordered) noexcept {
  auto const magnitude = static_cast<std::uint32_t>(ordered < 0 ? -ordered : ordered);
  return priority_of_bits(ordered < 0 ? magnitude | 0x80000000U : magnitude);
}

/// `ordered_priority(keep_never)`.
inline constexpr std::int32_t ordered_keep_never = -0x7F800000;

/// Unique key of a slot within its lane; the smallest key is released first.
///
/// Equal priorities release the oldest token first, or the newest if `newest_first`.
ADORE_HOST_DEVICE constexpr std::uint64_t order_key(float priority,
                                                    position_t position,
                                                    bool newest_first = false) noexcept {
  std::uint32_t const high =
      static_cast<std::uint32_t>(ordered_priority(priority)) ^ std::uint32_t{0x80000000U};
  std::uint32_t const age =
      newest_first ? ~static_cast<std::uint32_t>(position) : static_cast<std::uint32_t>(position);
  return (static_cast<std::uint64_t>(high) << 32U) | age;
}

/// `base` to a whole power >= 0 by repeated squaring: exact where the products are.
ADORE_HOST_DEVICE constexpr float power(float base, index_t exponent) noexcept {
  float result = 1.0F;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace adore
