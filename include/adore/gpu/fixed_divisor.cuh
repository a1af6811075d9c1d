// SPDX-License-Identifier: Apache-2.0
// Division by a number that a launch fixes: kernels divide slowly.
#pragma once

#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// Division of 0 <= n < 2^31 by a number that is fixed on the host, as a multiplication.
///
/// Source: Granlund and Montgomery, "Division by invariant integers using multiplication", 1994,
///         theorem 4.2: with 2^bits >= divisor, n / divisor = n * ceil(2^(31 + bits) / divisor)
///         >> (31 + bits).
struct fixed_divisor {
  std::uint32_t factor = 0x80000000U;
  std::uint32_t shift = 31;

  constexpr fixed_divisor() = default;
  explicit constexpr fixed_divisor(index_t divisor) {
    while ((std::uint64_t{1} << (shift - 31U)) < static_cast<std::uint64_t>(divisor)) ++shift;
    auto const by = static_cast<std::uint64_t>(divisor);
    factor = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + by - 1) / by);
  }
  ADORE_HOST_DEVICE constexpr index_t quotient(index_t n) const noexcept {
    return static_cast<index_t>((static_cast<std::uint64_t>(n) * factor) >> shift);
  }
};

}  // namespace adore::gpu::detail
