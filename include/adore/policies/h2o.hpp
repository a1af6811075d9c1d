// SPDX-License-Identifier: Apache-2.0
// The Heavy-Hitter Oracle: recent tokens, and those that gathered the most attention.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `recent` newest tokens and the `heavy` others with the largest attention so far.
///
/// Source:  Zhang et al., arXiv:2306.14048, section 4; the authors' `utils_real_drop`.
/// Differs: nothing from that code. Algorithm 1 as printed is `h2o_algorithm_1`, the simulation by
///          masks is `h2o_mask_simulation`. GQA: the group's probabilities are reduced first.
/// State:   one float per slot, the attention received (sum of probabilities, >= 0).
struct h2o {
  index_t heavy = 256;
  index_t recent = 256;

  static constexpr char const* name = "h2o";
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
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return state.mass;
  }
  constexpr void validate() const {
    require_field(heavy >= 0, "h2o.heavy", heavy, "must not be negative");
    require_field(recent >= 0, "h2o.recent", recent, "must not be negative");
  }

  static constexpr h2o of_budget(index_t budget) {
    return {.heavy = budget - budget / 2, .recent = budget / 2};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("heavy", self.heavy);
    visit("recent", self.recent);
  }
};

static_assert(observes_attention<h2o> && protects_newest<h2o> && described<h2o>);

}  // namespace adore
