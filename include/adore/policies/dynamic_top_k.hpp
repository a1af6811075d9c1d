// SPDX-License-Identifier: Apache-2.0
// Dynamic top-K attention: the oracle above every policy. Keeps all, attends the strongest keys.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

constexpr char const* word_of(top_k_scope agreed) noexcept {
  switch (agreed) {
    case top_k_scope::head:
      return "head";
    case top_k_scope::kv_head:
      return "kv_head";
    case top_k_scope::layer:
      return "layer";
  }
  return nullptr;
}

/// Lets each query attend the `count` keys that it attends most in full attention.
///
/// Source:  arXiv:2407.02328, section 2.2 and appendix B; policies.md 9. A set for the whole model
///          needs all layers first: see `uniform_labels` in controller/labels.hpp.
/// Differs: a budget of m sets count = m + 1, what a query attends at that budget elsewhere.
/// State:   none, but all K/V: a bound, not a saving.
struct dynamic_top_k {
  index_t count = 513;
  top_k_scope agreed = top_k_scope::head;  ///< the heads that share one set
  bool include_self = false;  ///< the query's own key always counts among the strongest

  static constexpr char const* name = "dynamic_top_k";
  static constexpr char const* budget_field = "count";
  static constexpr scope default_scope = scope::model;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 1;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return unbounded; }
  constexpr index_t nominal_budget() const noexcept { return count - 1; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;
  }
  ADORE_HOST_DEVICE constexpr top_k_limit attention_limit() const noexcept {
    return {count, agreed, include_self};
  }
  constexpr void validate() const {
    require_field(count >= 1, "dynamic_top_k.count", count, "must be at least 1");
  }

  static constexpr dynamic_top_k of_budget(index_t budget) { return {.count = budget + 1}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("count", self.count);
    visit("agreed", self.agreed);
    visit("include_self", self.include_self);
  }
};

static_assert(limits_attention<dynamic_top_k> && described<dynamic_top_k>);

}  // namespace adore
