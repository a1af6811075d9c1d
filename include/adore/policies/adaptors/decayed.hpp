// SPDX-License-Identifier: Apache-2.0
// Lets accumulated scores fade.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/order_key.hpp"
#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// Attention that came k queries ago counts factor^k of its weight.
///
/// Source: policies.md 6.2; `decayed<h2o>` keeps the sets of `decayed_h2o`.
template <eviction_policy P>
  requires scales_scores<P>
struct decayed : forwards<decayed<P>, P> {
  P of{};
  float factor = 0.97F;  ///< per query, in (0, 1]
  using slot_state = slot_state_of<P>;

  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept {
    return power(factor, later) * query_weight_of(of, later);
  }
  ADORE_HOST_DEVICE constexpr void observe(slot_state& state,
                                           slot_view slot,
                                           lane_view lane,
                                           float weight,
                                           index_t queries) const noexcept {
    of.scale(state, power(factor, queries));
    of.observe(state, slot, lane, weight, queries);
  }
  constexpr void validate() const {
    of.validate();
    require_field(factor > 0.0F && factor <= 1.0F, "decayed.factor", factor, "must lie in (0, 1]");
  }
};

}  // namespace adore
