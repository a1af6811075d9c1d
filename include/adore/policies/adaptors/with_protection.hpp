// SPDX-License-Identifier: Apache-2.0
// Protects sinks and recent tokens that a policy would not protect by itself.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// At least the first `sinks` and the newest `recent` tokens stay.
///
///     with_protection<tova>{.of = {.size = 128}, .sinks = 4, .recent = 32}
template <eviction_policy P>
struct with_protection : forwards<with_protection<P>, P> {
  P of{};
  index_t sinks = 4;
  index_t recent = 0;

  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view lane) const noexcept {
    index_t const own = first_protected_by(of, lane);
    return own > sinks ? own : sinks;
  }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view lane) const noexcept {
    index_t const own = newest_protected_by(of, lane);
    return own > recent ? own : recent;
  }
  constexpr void validate() const {
    of.validate();
    require_field(sinks >= 0, "with_protection.sinks", sinks, "must not be negative");
    require_field(recent >= 0, "with_protection.recent", recent, "must not be negative");
    require_field(of.budget() == unbounded || sinks <= of.budget() - recent,
                  "with_protection.sinks",
                  sinks,
                  "with the recent ones exceed the budget");
  }
};

}  // namespace adore
