// SPDX-License-Identifier: Apache-2.0
// ADORE's release: the tokens that a controller thinks least of go.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Keeps the `keep` tokens with the largest score, `sinks` first and `recent` newest ones among
/// them unconditionally.
///
/// The score is a controller's logit. It may be set once, when a token arrives, or again for all
/// slots at every step: then the step's scores decide. A token without a score has 0.
///
/// Source:  policies.md 12; arXiv:2407.02328.
/// Differs: the paper protects nothing (`paper`). On a real model that lets a learned score drop
///          the first tokens, and perplexity collapses.
/// State:   one float per slot.
struct adaptive_release {
  index_t keep = 512;
  index_t recent = 128;
  index_t sinks = 4;

  static constexpr char const* name = "adaptive_release";
  static constexpr char const* budget_field = "keep";
  static constexpr scope default_scope = scope::model;

  struct slot_state {
    float score = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return keep; }
  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view) const noexcept { return sinks; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return recent; }
  ADORE_HOST_DEVICE constexpr void score(slot_state& state, float logit) const noexcept {
    state.score = logit;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return state.score;
  }
  constexpr void validate() const {
    require_field(keep >= 0, "adaptive_release.keep", keep, "must not be negative");
    require_field(
        sinks >= 0 && sinks <= keep, "adaptive_release.sinks", sinks, "must lie in [0, keep]");
    require_field(recent >= 0 && recent <= keep - sinks,
                  "adaptive_release.recent",
                  recent,
                  "must lie in [0, keep - sinks]");
  }

  /// As the paper has it: the score alone decides.
  static constexpr adaptive_release paper(index_t keep) {
    return {.keep = keep, .recent = 0, .sinks = 0};
  }
  static constexpr adaptive_release of_budget(index_t budget) {
    index_t const recent = budget / 4;
    return {.keep = budget, .recent = recent, .sinks = budget - recent < 4 ? budget - recent : 4};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("keep", self.keep);
    visit("recent", self.recent);
    visit("sinks", self.sinks);
  }
};

static_assert(scores_tokens<adaptive_release> && !ranks_once<adaptive_release>);
static_assert(described<adaptive_release>);

}  // namespace adore
