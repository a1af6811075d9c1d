// SPDX-License-Identifier: Apache-2.0
// H2O's Algorithm 1 exactly as printed, which freezes: for comparing papers, not for use.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the first `size` tokens for ever. The printed rule scores tokens by the current row only,
/// and that row is zero at the newest token, which is therefore always the victim.
///
/// Source:  arXiv:2306.14048, Algorithm 1; policies.md 6.6. The text says "accumulated": see `h2o`.
/// Differs: a query attends itself too; printed, the first would attend nothing.
/// State:   none.
struct h2o_algorithm_1 {
  index_t size = 512;

  static constexpr char const* name = "h2o_algorithm_1";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::kv_head;
  static constexpr bool fixed_priority = true;
  static constexpr bool newest_first = true;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;
  }
  constexpr void validate() const {
    require_field(size >= 0, "h2o_algorithm_1.size", size, "must not be negative");
  }

  static constexpr h2o_algorithm_1 of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
  }
};

static_assert(ranks_once<h2o_algorithm_1> && releases_newest_of_equals<h2o_algorithm_1>);
static_assert(described<h2o_algorithm_1>);

}  // namespace adore
