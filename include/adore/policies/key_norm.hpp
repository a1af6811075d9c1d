// SPDX-License-Identifier: Apache-2.0
// Key norm: keys of small norm tend to receive much attention, so the largest go.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `size` tokens with the smallest keys, the `recent` newest ones unconditionally.
///
/// Source:  Devoto et al., arXiv:2406.11430.
/// Differs: decides at every step, not once; ranks by the squared norm, which orders alike. A lane
///          that spans several heads adds up their squares. RoPE leaves norms as they are.
/// State:   one float per slot, the squared norm; on the host a heap.
struct key_norm {
  index_t size = 512;
  index_t recent = 0;

  static constexpr char const* name = "key_norm";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::kv_head;
  static constexpr bool fixed_priority = true;

  struct slot_state {
    float squared_norm = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return recent; }
  ADORE_HOST_DEVICE constexpr void score_key(slot_state& state, float squared_norm) const noexcept {
    state.squared_norm += squared_norm;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return -state.squared_norm;
  }
  constexpr void validate() const {
    require_field(size >= 0, "key_norm.size", size, "must not be negative");
    require_field(
        recent >= 0 && recent <= size, "key_norm.recent", recent, "must lie in [0, size]");
  }

  static constexpr key_norm of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
    visit("recent", self.recent);
  }
};

static_assert(ranks_once<key_norm> && !ranks_in_levels<key_norm> && scores_keys<key_norm>);
static_assert(described<key_norm>);

}  // namespace adore
