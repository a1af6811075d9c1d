// SPDX-License-Identifier: Apache-2.0
// TOVA: whatever the newest token attends least goes.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `size` tokens that the last query attended most, first and newest tokens included in
/// the competition.
///
/// Source:  Oren et al., arXiv:2401.06104, Algorithm 1.
/// Differs: nothing; the mean over the layer's query heads orders tokens as their sum does.
///          `protect_newest` is the variant of kvpress.
/// State:   one float per slot, the last query's weight.
struct tova {
  index_t size = 512;
  bool protect_newest = false;

  static constexpr char const* name = "tova";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::layer;

  struct slot_state {
    float weight = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept {
    return protect_newest ? 1 : 0;
  }
  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept {
    return later == 0 ? 1.0F : 0.0F;
  }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t) const noexcept {
    state.weight = weight;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return state.weight;
  }
  constexpr void validate() const {
    require_field(size >= 0, "tova.size", size, "must not be negative");
    require_field(size >= 1 || !protect_newest,
                  "tova.size",
                  size,
                  "must have room for the protected newest token");
  }

  static constexpr tova of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
    visit("protect_newest", self.protect_newest);
  }
};

static_assert(observes_attention<tova> && weighs_queries<tova> && described<tova>);

}  // namespace adore
