// SPDX-License-Identifier: Apache-2.0
// H2O as its authors' accuracy code simulates it: by masks over a cache from which nothing goes.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Attends the `recent` newest tokens (the query's own among them) and the `heavy` others with the
/// largest scores; the token that has just left the recent ones is hidden for one step; a hidden
/// token's score is set to zero, yet it may come back. For comparing papers, not for saving memory.
///
/// Source: FMInference/H2O, `h2o_hf/utils_hh`; policies.md 6.6.
/// State:  one float and a mark per slot.
struct h2o_mask_simulation {
  index_t heavy = 256;
  index_t recent = 256;

  static constexpr char const* name = "h2o_mask_simulation";
  static constexpr char const* budget_field = "heavy";
  static constexpr scope default_scope = scope::kv_head;

  struct slot_state {
    float mass = 0.0F;
    index_t chosen = 1;  ///< 0 or 1; as wide as the mass, so that no byte is left without a value
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return unbounded; }
  constexpr index_t nominal_budget() const noexcept { return heavy + recent - 1; }
  ADORE_HOST_DEVICE constexpr index_t visible() const noexcept { return heavy + recent; }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t) const noexcept {
    state.mass += weight;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return state.mass;
  }
  ADORE_HOST_DEVICE constexpr bool sees(slot_view query,
                                        slot_state const&,
                                        slot_view key,
                                        slot_state const& key_state,
                                        head_view) const noexcept {
    return query.position - key.position < recent || key_state.chosen != 0;
  }
  /// Tokens of which `mark` chooses after each step: those that are not recent to it.
  ADORE_HOST_DEVICE constexpr position_t last_markable(lane_view lane) const noexcept {
    return lane.newest - recent;
  }
  ADORE_HOST_DEVICE constexpr index_t marks(lane_view lane) const noexcept {
    return lane.occupied > visible() ? heavy : unbounded;
  }
  ADORE_HOST_DEVICE constexpr void mark(slot_state& state, bool chosen) const noexcept {
    state.chosen = chosen ? 1 : 0;
    if (!chosen) state.mass = 0.0F;
  }
  /// The recent tokens are seen because they are recent; the one that leaves next is not chosen.
  ADORE_HOST_DEVICE constexpr void unmark(slot_state& state) const noexcept { state.chosen = 0; }
  constexpr void validate() const {
    require_field(heavy >= 0, "h2o_mask_simulation.heavy", heavy, "must not be negative");
    require_field(recent >= 1, "h2o_mask_simulation.recent", recent, "must be at least 1");
  }

  static constexpr h2o_mask_simulation of_budget(index_t budget) {
    // visible tokens count the query's own: budget + 1 is what other policies attend
    return {.heavy = budget - budget / 2, .recent = budget / 2 + 1};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("heavy", self.heavy);
    visit("recent", self.recent);
  }
};

static_assert(masks_attention<h2o_mask_simulation> && marks_tokens<h2o_mask_simulation>);
static_assert(described<h2o_mask_simulation>);

}  // namespace adore
