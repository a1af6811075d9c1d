// SPDX-License-Identifier: Apache-2.0
// What a policy must offer, and what the stages ask of it, whichever of its abilities the answer
// takes.
#pragma once

#include "adore/host_device.hpp"
#include "adore/policy_abilities.hpp"
#include "adore/policy_state.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <string_view>
#include <type_traits>

namespace adore {

// ------------------------------------------------------------------ what every policy must offer

template <class P>
concept has_budget = requires(P const& p) {
  { p.budget() } -> std::same_as<index_t>;  // tokens each lane keeps at first; may be `unbounded`
};

template <class P>
concept has_default_scope = requires {
  { P::default_scope } -> std::convertible_to<scope>;
};

template <class P>
concept validates = requires(P const& p) {
  p.validate();
};  // throws std::invalid_argument

template <class P>
concept ranks_by_slot = requires(P const& p, slot_view slot, lane_view lane) {
  { p.keep_priority(slot, lane) } -> std::same_as<float>;
};
template <class P>
concept ranks_by_slot_state =
    requires(P const& p, slot_view slot, lane_view lane, slot_state_of<P> const& state) {
  { p.keep_priority(slot, lane, state) } -> std::same_as<float>;
};
template <class P>
concept ranks_by_lane_state = requires(P const& p,
                                       slot_view slot,
                                       lane_view lane,
                                       slot_state_of<P> const& state,
                                       lane_state_of<P> const& lane_state) {
  { p.keep_priority(slot, lane, state, lane_state) } -> std::same_as<float>;
};

/// Decides which tokens stay: pure, copied into kernels, knows no memory.
template <class P>
concept eviction_policy = std::is_trivially_copyable_v<P> &&
    std::is_trivially_copyable_v<slot_state_of<P>> &&
    std::is_trivially_copyable_v<lane_state_of<P>> && has_budget<P> && has_default_scope<P> &&
    validates<P> &&(ranks_by_slot<P> || ranks_by_slot_state<P> || ranks_by_lane_state<P>);

// ------------------------------------------------------------------ what the stages call

template <eviction_policy P>
ADORE_HOST_DEVICE constexpr float priority_of(P const& policy,
                                              slot_view slot,
                                              lane_view const& lane,
                                              slot_state_of<P> const& state,
                                              lane_state_of<P> const& lane_state) noexcept {
  if constexpr (ranks_by_lane_state<P>) {
    return policy.keep_priority(slot, lane, state, lane_state);
  } else if constexpr (ranks_by_slot_state<P>) {
    return policy.keep_priority(slot, lane, state);
  } else {
    return policy.keep_priority(slot, lane);
  }
}

/// Candidates for release are the tokens with first <= position <= last.
struct candidate_range {
  position_t first, last;
};

template <eviction_policy P>
ADORE_HOST_DEVICE constexpr candidate_range candidates_of(P const& policy,
                                                          lane_view const& lane) noexcept {
  candidate_range range{0, lane.newest};
  if constexpr (protects_first<P>) range.first = policy.protected_first(lane);
  if constexpr (protects_newest<P>) {
    // newest - count would overflow for a policy that protects everything
    index_t const count = policy.protected_newest(lane);
    range.last = count > lane.newest ? -1 : lane.newest - count;
  }
  return range;
}

template <eviction_policy P>
ADORE_HOST_DEVICE constexpr float query_weight_of(P const& policy, index_t later) noexcept {
  if constexpr (weighs_queries<P>) {
    return policy.query_weight(later);
  } else {
    return 1.0F;
  }
}

// ------------------------------------------------------------------ names and fields

/// A visitor of fields that does nothing: what `described` tries (nvcc takes no lambda there).
struct no_visit {
  template <class Value>
  constexpr void operator()(std::string_view, Value&) const noexcept {}
};

/// A policy that can be named in text: `static constexpr std::string_view name`, a static template
/// `fields(self, visit)` that calls `visit("heavy", self.heavy)` per field, the field that takes
/// what the others leave of a budget (empty: it has none), and the policy of a whole budget.
template <class P>
concept described = eviction_policy<P> && requires(P& p, index_t budget) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::budget_field } -> std::convertible_to<std::string_view>;
  { P::of_budget(budget) } -> std::same_as<P>;
  P::fields(p, no_visit{});
};

}  // namespace adore
