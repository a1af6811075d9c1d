// SPDX-License-Identifier: Apache-2.0
// The sentences in which policies and options refuse a number, and a pointer.
#pragma once

#include <stdexcept>
#include <string>

namespace adore {

/// Throws std::invalid_argument "adore: h2o.heavy = -1: must not be negative" unless `holds`.
template <class Number>
constexpr void require_field(bool holds, char const* field, Number value, char const* why) {
  if (!holds) {
    throw std::invalid_argument(std::string("adore: ") + field + " = " + std::to_string(value) +
                                ": " + why);
  }
}

/// Throws std::invalid_argument "adore: weights.lse: is null" if it is.
inline void require_pointer(void const* pointer, char const* field) {
  if (pointer == nullptr) {
    throw std::invalid_argument(std::string("adore: ") + field + ": is null");
  }
}

}  // namespace adore
