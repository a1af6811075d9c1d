// SPDX-License-Identifier: Apache-2.0
// Strided attention as eviction: the newest tokens and every interval-th token before them.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// What happens when the grid itself outgrows the budget.
enum class stride_bound : std::uint8_t { none, drop_oldest_grid };
constexpr char const* word_of(stride_bound bound) noexcept {
  switch (bound) {
    case stride_bound::none:
      return "none";
    case stride_bound::drop_oldest_grid:
      return "drop_oldest_grid";
  }
  return nullptr;
}

/// Keeps the `window` newest tokens and those on the grid position = phase (mod interval).
///
/// Source:  arXiv:2407.02328, baseline 3; policies.md 4.1 (absolute grid).
/// Differs: `bound` is ours; unbounded, the cache grows as n / interval, as in the paper.
///          Bounded, nothing is dropped while at most `limit` tokens are kept; then tokens off the
///          grid, then grid tokens, oldest first.
/// State:   none; on the host a ring.
struct strided {
  index_t interval = 8;
  index_t window = 256;
  index_t phase = 0;
  stride_bound bound = stride_bound::none;
  index_t limit = 512;  ///< tokens kept when bounded; unused otherwise

  static constexpr char const* name = "strided";
  static constexpr char const* budget_field = "limit";
  static constexpr scope default_scope = scope::model;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 2;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept {
    return bound == stride_bound::none ? unbounded : limit;
  }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return window; }
  ADORE_HOST_DEVICE constexpr bool on_grid(position_t position) const noexcept {
    return position % interval == phase;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot, lane_view) const noexcept {
    if (on_grid(slot.position)) return 1.0F;
    return bound == stride_bound::none ? keep_never : 0.0F;
  }
  ADORE_HOST_DEVICE constexpr bool sees_in_prompt(position_t query, position_t key) const noexcept {
    return query - key <= window || on_grid(key);
  }
  constexpr void validate() const {
    require_field(interval >= 1, "strided.interval", interval, "must be at least 1");
    require_field(window >= 1, "strided.window", window, "must be at least 1");
    require_field(
        phase >= 0 && phase < interval, "strided.phase", phase, "must lie in [0, interval)");
    require_field(bound == stride_bound::none || limit > window,
                  "strided.limit",
                  limit,
                  "must be larger than the window");
  }

  static constexpr strided of_budget(index_t budget) {
    return {.window = budget / 2, .bound = stride_bound::drop_oldest_grid, .limit = budget};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("interval", self.interval);
    visit("window", self.window);
    visit("phase", self.phase);
    visit("bound", self.bound);
    visit("limit", self.limit);
  }
};

static_assert(ranks_in_levels<strided> && protects_newest<strided> && described<strided>);

}  // namespace adore
