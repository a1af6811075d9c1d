// SPDX-License-Identifier: Apache-2.0
// Strided attention whose interval doubles whenever the grid no longer fits.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `window` newest tokens and a grid that covers the whole past at an ever coarser
/// interval: when only grid tokens are left to drop, the interval doubles.
///
/// Source: policies.md 4.1, bound `double_stride`.
/// State:  per lane, how often the interval has doubled.
struct strided_doubling {
  index_t interval = 8;
  index_t window = 256;
  index_t phase = 0;
  index_t limit = 512;

  static constexpr char const* name = "strided_doubling";
  static constexpr char const* budget_field = "limit";
  static constexpr scope default_scope = scope::model;

  struct lane_state {
    index_t doublings = 0;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return limit; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return window; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot,
                                                  lane_view,
                                                  no_state const&,
                                                  lane_state const& state) const noexcept {
    return slot.position % current_interval(state) == phase ? 1.0F : 0.0F;
  }
  ADORE_HOST_DEVICE constexpr bool relent(lane_state& state,
                                          lane_view lane,
                                          float lowest) const noexcept {
    // beyond the newest position a coarser grid loses nothing more
    if (lowest < 1.0F || current_interval(state) > lane.newest) return false;
    ++state.doublings;
    return true;
  }
  constexpr void validate() const {
    require_field(interval >= 1, "strided_doubling.interval", interval, "must be at least 1");
    require_field(window >= 1, "strided_doubling.window", window, "must be at least 1");
    require_field(phase >= 0 && phase < interval,
                  "strided_doubling.phase",
                  phase,
                  "must lie in [0, interval)");
    require_field(
        limit > window, "strided_doubling.limit", limit, "must be larger than the window");
  }

  static constexpr strided_doubling of_budget(index_t budget) {
    return {.window = budget / 2, .limit = budget};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("interval", self.interval);
    visit("window", self.window);
    visit("phase", self.phase);
    visit("limit", self.limit);
  }

 private:
  ADORE_HOST_DEVICE constexpr std::int64_t current_interval(
      lane_state const& state) const noexcept {
    return std::int64_t{interval} << state.doublings;
  }
};

static_assert(relents<strided_doubling> && !ranks_once<strided_doubling>);
static_assert(described<strided_doubling>);

}  // namespace adore
