// SPDX-License-Identifier: Apache-2.0
// The factor of q.k, on the host and on the device.
#pragma once

#include "adore/types.hpp"

#include <cmath>

namespace adore {

/// @param given  0: 1 / sqrt(channels)
inline float attention_scale_of(float given, index_t channels) {
  return given != 0.0F ? given : 1.0F / std::sqrt(static_cast<float>(channels));
}

}  // namespace adore
