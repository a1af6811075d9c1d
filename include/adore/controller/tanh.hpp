// SPDX-License-Identifier: Apache-2.0
// The tanh of many numbers. Scores that move with the newest token take one per token and channel
// at every step: with std::tanh, which no compiler turns into vectors, that is all their time.
#pragma once

#include "adore/types.hpp"

#include <cstdint>

namespace adore {

/// tanh(x) to 3e-7 as 1 - 2 / (exp(2 x) + 1). A NaN stays one.
///
/// What depends on x is chosen on the bits: a comparison of floats, which may trap, or a choice
/// between two results would keep g++ from making vectors.
constexpr float branchless_tanh(float x) noexcept {
  constexpr std::int32_t infinity = 0x7F800000;
  constexpr std::int32_t fifteen = 0x41700000;  // from here on it is 1
  auto const bits = __builtin_bit_cast(std::int32_t, x);
  std::int32_t const magnitude = bits & 0x7FFFFFFF;
  auto const size = __builtin_bit_cast(float, magnitude < fifteen ? magnitude : fifteen);
  float const power = 2.0F * 1.44269504F * size;  // exp(2 size) = 2^power
  std::int32_t const whole = (static_cast<std::int32_t>(2.0F * power) + 1) / 2;  // the nearest
  float const f = (power - static_cast<float>(whole)) * 0.693147181F;
  // exp(f), |f| <= log(2) / 2, by its series
  float series = 1.0F / 5040.0F;
  series = series * f + 1.0F / 720.0F;
  series = series * f + 1.0F / 120.0F;
  series = series * f + 1.0F / 24.0F;
  series = series * f + 1.0F / 6.0F;
  series = series * f + 0.5F;
  series = series * f + 1.0F;
  series = series * f + 1.0F;
  float const exponential = series * __builtin_bit_cast(float, (whole + 127) << 23);
  float const result = 1.0F - 2.0F / (exponential + 1.0F);
  std::int32_t const sign = bits & ~0x7FFFFFFF;
  std::int32_t const not_a_number = magnitude > infinity ? 0x7FC00000 : 0;
  return __builtin_bit_cast(float, __builtin_bit_cast(std::int32_t, result) | sign | not_a_number);
}

/// Replaces each of `count` numbers by its tanh.
constexpr void tanh_of_each(float* values, index_t count) noexcept {
  for (index_t k = 0; k < count; ++k) values[k] = branchless_tanh(values[k]);
}

}  // namespace adore
