// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: the same (seed, counter) gives the same number on every machine,
// in any order, on host and device.
#pragma once

#include "adore/host_device.hpp"

#include <cstdint>

namespace adore {

/// Philox-2x32 with ten rounds.
///
/// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
/// @param key      names the stream
/// @param counter  two words that name the number
/// @return 64 random bits, the generator's first word in the low half
ADORE_HOST_DEVICE constexpr std::uint64_t philox(std::uint32_t key,
                                                 std::uint64_t counter) noexcept {
  auto low = static_cast<std::uint32_t>(counter);
  auto high = static_cast<std::uint32_t>(counter >> 32U);
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const product = std::uint64_t{0xD256D193U} * low;
    low = static_cast<std::uint32_t>(product >> 32U) ^ key ^ high;
    high = static_cast<std::uint32_t>(product);
    key += 0x9E3779B9U;
  }
  return (static_cast<std::uint64_t>(high) << 32U) | low;
}

/// Uniform in [0, 1) with 24 bits, from the top bits of a random word.
ADORE_HOST_DEVICE constexpr float unit_float(std::uint32_t bits) noexcept {
  return static_cast<float>(bits >> 8U) * 0x1p-24F;
}

/// Folds a sequence's seed and a lane's place into the key of a stream.
///
/// Source: the finaliser of splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number
///         Generators", OOPSLA 2014, figure 16): a policy calls this for every token.
ADORE_HOST_DEVICE constexpr std::uint32_t stream_key(std::uint64_t seed,
                                                     std::int32_t layer,
                                                     std::int32_t kv_head) noexcept {
  std::uint64_t const place =
      (static_cast<std::uint64_t>(static_cast<std::uint32_t>(layer)) << 32U) |
      static_cast<std::uint32_t>(kv_head);
  std::uint64_t bits = seed + (place + 1U) * 0x9E3779B97F4A7C15U;
  bits = (bits ^ (bits >> 30U)) * 0xBF58476D1CE4E5B9U;
  bits = (bits ^ (bits >> 27U)) * 0x94D049BB133111EBU;
  return static_cast<std::uint32_t>(bits >> 32U);
}

}  // namespace adore
