// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding in both pair layouts, with angles in double precision.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/types.hpp"

#include <cmath>
#include <span>
#include <stdexcept>
#include <vector>

namespace adore {

/// Which channels turn together: i and i + n/2 (GPT-NeoX, Hugging Face checkpoints), or 2i and
/// 2i + 1 (the original layout, Llama files in GGUF).
enum class rope_pairs : std::uint8_t { halves, adjacent };

/// Turns pairs of channels by position x frequency.
///
/// Source: Su et al., arXiv:2104.09864, section 3.4.2. Angles are computed in double precision: at
///         position 4e6 a float angle is off by up to 0.1 rad.
class rope {
 public:
  /// Cosines and sines of one position, one per pair.
  struct rotation {
    std::vector<float> cosine, sine;
  };

  /// @param channels  rotated channels of a head, even; the others pass unchanged
  /// @param base      frequency of pair i is base^(-2i / channels)
  /// @param factors   optional divisor per pair (Llama 3's long-context scaling); empty: all 1
  rope(index_t channels, double base, rope_pairs pairs, std::span<float const> factors = {})
      : pairs_(pairs) {
    require_field(
        channels > 0 && channels % 2 == 0, "rope.channels", channels, "must be even and positive");
    require_field(base > 0.0, "rope.base", base, "must be positive");
    if (!factors.empty() && factors.size() != static_cast<std::size_t>(channels / 2)) {
      throw std::invalid_argument("adore: rope.factors: one per pair of channels is needed");
    }
    for (index_t i = 0; i < channels / 2; ++i) {
      double const factor = factors.empty() ? 1.0 : double{factors[static_cast<std::size_t>(i)]};
      frequencies_.push_back(std::pow(base, -2.0 * i / channels) / factor);
    }
  }

  index_t channels() const noexcept { return 2 * static_cast<index_t>(frequencies_.size()); }

  rotation at(std::int64_t position) const {
    rotation turn;
    for (double const frequency : frequencies_) {
      double const angle = static_cast<double>(position) * frequency;
      turn.cosine.push_back(static_cast<float>(std::cos(angle)));
      turn.sine.push_back(static_cast<float>(std::sin(angle)));
    }
    return turn;
  }

  /// Turns the first `channels()` of a head's channels from `from` into `to`; they may be the same.
  void rotate(float const* from, float* to, rotation const& turn) const noexcept {
    index_t const pairs = static_cast<index_t>(frequencies_.size());
    index_t const step = pairs_ == rope_pairs::adjacent ? 2 : 1;
    index_t const partner = pairs_ == rope_pairs::adjacent ? 1 : pairs;
    float const* const cosine = turn.cosine.data();
    float const* const sine = turn.sine.data();
    for (index_t i = 0; i < pairs; ++i) {
      float const x = from[i * step];
      float const y = from[i * step + partner];
      to[i * step] = x * cosine[i] - y * sine[i];
      to[i * step + partner] = x * sine[i] + y * cosine[i];
    }
  }

 private:
  rope_pairs pairs_;
  std::vector<double> frequencies_;  // [pair], radians per position
};

}  // namespace adore
