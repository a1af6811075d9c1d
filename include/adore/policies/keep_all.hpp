// SPDX-License-Identifier: Apache-2.0
// Full attention: the cache that every other policy is compared with.
#pragma once

#include "adore/concepts.hpp"

namespace adore {

/// Keeps every token; a lane that runs out of slots is an error of the caller, never a release.
///
/// State: none.
struct keep_all {
  static constexpr char const* name = "keep_all";
  static constexpr char const* budget_field = "";
  static constexpr scope default_scope = scope::model;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 1;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return unbounded; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;
  }
  constexpr void validate() const {}

  static constexpr keep_all of_budget(index_t) { return {}; }
  template <class Self, class Visit>
  static constexpr void fields(Self&, Visit&&) {}
};

static_assert(ranks_in_levels<keep_all> && described<keep_all>);

}  // namespace adore
