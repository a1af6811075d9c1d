// SPDX-License-Identifier: Apache-2.0
// Window attention: the newest tokens and nothing else.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// What a token of a dense prompt attends: what it would have attended token by token, or all.
enum class prompt_mask : std::uint8_t { pattern, full };
constexpr char const* word_of(prompt_mask mask) noexcept {
  switch (mask) {
    case prompt_mask::pattern:
      return "pattern";
    case prompt_mask::full:
      return "full";
  }
  return nullptr;
}

/// Keeps the `size` newest tokens. Collapses on models that need their first tokens as sinks.
///
/// Source: policies.md 3; the baseline "window attention" of arXiv:2309.17453, section 3.1.
/// Differs: `size` counts what stays after a step, so a query attends size + 1 tokens.
/// State:   none; on the host a ring.
struct sliding_window {
  index_t size = 512;
  prompt_mask prompt = prompt_mask::pattern;

  static constexpr char const* name = "sliding_window";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::model;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 1;
  static constexpr bool sinks_and_window = true;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;  // all equal: the oldest goes
  }
  ADORE_HOST_DEVICE constexpr bool sees_in_prompt(position_t query, position_t key) const noexcept {
    return prompt == prompt_mask::full || query - key <= size;
  }
  constexpr void validate() const {
    require_field(size >= 0, "sliding_window.size", size, "must not be negative");
  }

  static constexpr sliding_window of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
    visit("prompt", self.prompt);
  }
};

static_assert(ranks_in_levels<sliding_window> && masks_prompt<sliding_window>);
static_assert(described<sliding_window>);

}  // namespace adore
