// SPDX-License-Identifier: Apache-2.0
// A controller's score joined with the attention that a token receives: what was looked at lately
// and will matter later stays.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"
#include "adore/order_key.hpp"

#include <cmath>

namespace adore {

/// Keeps the `keep` tokens with the largest (mass + epsilon) x exp(score), `sinks` first and
/// `recent` newest ones among them unconditionally. The mass is attention that fades as in
/// `decayed_h2o`, the score a controller's logit: trained on log(mass + epsilon) beside its own
/// output, it says how far the mass misleads.
///
/// A token without a score has a gain of 1: alone, this is decayed H2O with sinks.
///
/// Source:  own; decayed H2O and controllers trained on future attention each beat what they are
///          made from (policies.md 6.2, 15).
/// State:   two floats per slot.
struct attentive_release {
  index_t keep = 512;
  index_t recent = 128;
  index_t sinks = 4;
  float factor = 0.97F;   ///< per query, in (0, 1]
  float epsilon = 1e-6F;  ///< mass of a token that nobody has looked at yet, > 0

  static constexpr char const* name = "attentive_release";
  static constexpr char const* budget_field = "keep";
  static constexpr scope default_scope = scope::layer;
  /// Logits beyond this are cut, so that the gain stays finite and above 0.
  static constexpr float largest_logit = 30.0F;

  struct slot_state {
    float mass = 0.0F;
    float gain = 1.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return keep; }
  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view) const noexcept { return sinks; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return recent; }
  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept {
    return power(factor, later);
  }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view, float weight, index_t queries) const noexcept {
    state.mass = state.mass * power(factor, queries) + weight;
  }
  /// A NaN stays one, and its token goes first. (On the bits, as everywhere in the order.)
  ADORE_HOST_DEVICE void score(slot_state& state, float logit) const noexcept {
    float cut = logit;
    if (ordered_priority(logit) > ordered_priority(largest_logit)) cut = largest_logit;
    bool const is_number = ordered_priority(logit) >= ordered_keep_never;
    if (is_number && ordered_priority(logit) < ordered_priority(-largest_logit)) {
      cut = -largest_logit;
    }
    state.gain = is_number ? std::exp(cut) : logit;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state) const noexcept {
    return (state.mass + epsilon) * state.gain;
  }
  constexpr void validate() const {
    require_field(keep >= 0, "attentive_release.keep", keep, "must not be negative");
    require_field(
        sinks >= 0 && sinks <= keep, "attentive_release.sinks", sinks, "must lie in [0, keep]");
    require_field(recent >= 0 && recent <= keep - sinks,
                  "attentive_release.recent",
                  recent,
                  "must lie in [0, keep - sinks]");
    require_field(
        factor > 0.0F && factor <= 1.0F, "attentive_release.factor", factor, "must lie in (0, 1]");
    require_field(epsilon > 0.0F && epsilon <= 1.0F,
                  "attentive_release.epsilon",
                  epsilon,
                  "must lie in (0, 1]");
  }

  static constexpr attentive_release of_budget(index_t budget) {
    index_t const recent = budget / 4;
    return {.keep = budget, .recent = recent, .sinks = budget - recent < 4 ? budget - recent : 4};
  }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("keep", self.keep);
    visit("recent", self.recent);
    visit("sinks", self.sinks);
    visit("factor", self.factor);
    visit("epsilon", self.epsilon);
  }
};

static_assert(observes_attention<attentive_release> && weighs_queries<attentive_release>);
static_assert(scores_tokens<attentive_release> && described<attentive_release>);

}  // namespace adore
