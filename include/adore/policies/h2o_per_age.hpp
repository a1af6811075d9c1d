// SPDX-License-Identifier: Apache-2.0
// H2O by attention per query instead of in total, so that old tokens have no head start.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `recent` newest tokens and the `heavy` others with the largest mean attention over
/// the queries that could see them.
///
/// Source:  policies.md 6.2 (`score_norm = per_query_count`); the normalisation of kvpress.
/// State:   one float per slot, the attention received; the age follows from the position.
struct h2o_per_age {
  index_t heavy = 256;
  index_t recent = 256;

  static constexpr char const* name = "h2o_per_age";
  static constexpr char const* budget_field = "heavy";
  static constexpr scope default_scope = scope::kv_head;

  struct slot_state {
    float mass = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return heavy + recent; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return recent; }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t) const noexcept {
    state.mass += weight;
  }
  ADORE_HOST_DEVICE constexpr void scale(slot_state& state, float factor) const noexcept {
    state.mass *= factor;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot,
                                                  lane_view lane,
                                                  slot_state const& state) const noexcept {
    return state.mass / static_cast<float>(lane.newest - slot.position + 1);
  }
  constexpr void validate() const {
    require_field(heavy >= 0, "h2o_per_age.heavy", heavy, "must not be negative");
    require_field(recent >= 0, "h2o_per_age.recent", recent, "must not be negative");
  }

  static constexpr h2o_per_age of_budget(index_t budget) {
    return {.heavy = budget - budget / 2, .recent = budget / 2};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("heavy", self.heavy);
    visit("recent", self.recent);
  }
};

static_assert(observes_attention<h2o_per_age> && described<h2o_per_age>);

}  // namespace adore
