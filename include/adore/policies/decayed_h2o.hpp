// SPDX-License-Identifier: Apache-2.0
// H2O whose scores fade, so that old tokens cannot live on what they once received.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"
#include "adore/order_key.hpp"

namespace adore {

/// Keeps the `recent` newest tokens and the `heavy` others with the largest attention, where
/// attention that came k queries ago counts factor^k.
///
/// Source:  policies.md 6.2 (`decay`); H2O is arXiv:2306.14048. Factors of 0.9 to 0.99 do equally
///          well, and better than H2O, on the texts and lengths measured.
/// State:   one float per slot.
struct decayed_h2o {
  index_t heavy = 384;
  index_t recent = 128;
  float factor = 0.97F;  ///< per query, in (0, 1]

  static constexpr char const* name = "decayed_h2o";
  static constexpr char const* budget_field = "heavy";
  static constexpr scope default_scope = scope::kv_head;

  struct slot_state {
    float mass = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return heavy + recent; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return recent; }
  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept {
    return power(factor, later);
  }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t queries) const noexcept {
    state.mass = state.mass * power(factor, queries) + weight;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return state.mass;
  }
  constexpr void validate() const {
    require_field(heavy >= 0, "decayed_h2o.heavy", heavy, "must not be negative");
    require_field(recent >= 0, "decayed_h2o.recent", recent, "must not be negative");
    require_field(
        factor > 0.0F && factor <= 1.0F, "decayed_h2o.factor", factor, "must lie in (0, 1]");
  }

  static constexpr decayed_h2o of_budget(index_t budget) {
    return {.heavy = budget - budget / 4, .recent = budget / 4};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("heavy", self.heavy);
    visit("recent", self.recent);
    visit("factor", self.factor);
  }
};

static_assert(observes_attention<decayed_h2o> && weighs_queries<decayed_h2o>);
static_assert(described<decayed_h2o>);

}  // namespace adore
