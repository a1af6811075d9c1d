// SPDX-License-Identifier: Apache-2.0
// StreamingLLM: attention sinks and a window.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the first `sinks` tokens for ever and the `window` newest ones.
///
/// Source:  Xiao et al., arXiv:2309.17453, section 3.2.
/// Differs: nothing; like the authors' code a query attends sinks + window + 1 tokens.
/// State:   none; on the host a ring.
struct streaming_llm {
  index_t sinks = 4;
  index_t window = 508;

  static constexpr char const* name = "streaming_llm";
  static constexpr char const* budget_field = "window";
  static constexpr scope default_scope = scope::model;
  static constexpr position_scheme default_positions = position_scheme::cache_index;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 1;
  static constexpr bool sinks_and_window = true;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return sinks + window; }
  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view) const noexcept { return sinks; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;
  }
  constexpr void validate() const {
    require_field(sinks >= 0, "streaming_llm.sinks", sinks, "must not be negative");
    require_field(window >= (sinks > 0 ? 1 : 0),
                  "streaming_llm.window",
                  window,
                  "the budget must be larger than the sinks");
  }

  static constexpr streaming_llm of_budget(index_t budget) {
    return {.sinks = 4, .window = budget - 4};
  }
  /// Fits the sinks into a budget that may be smaller: at most budget - 1 of them.
  static constexpr streaming_llm clamped(index_t sinks, index_t budget) {
    index_t const fitting = budget > sinks ? sinks : (budget > 0 ? budget - 1 : 0);
    return {.sinks = fitting, .window = budget - fitting};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("sinks", self.sinks);
    visit("window", self.window);
  }
};

static_assert(ranks_in_levels<streaming_llm> && protects_first<streaming_llm>);
static_assert(described<streaming_llm>);

}  // namespace adore
