// SPDX-License-Identifier: Apache-2.0
// What every adaptor has in common: it can what the policy inside can, except where it says
// otherwise.
#pragma once

#include "adore/concepts.hpp"

#include <type_traits>

namespace adore {

namespace detail {

// Constants cannot be constrained one by one, so each has a base that is there or empty.
template <class P>
struct forwards_fixed_priority {};
template <ranks_once P>
struct forwards_fixed_priority<P> {
  static constexpr bool fixed_priority = true;
};
template <class P>
struct forwards_levels {};
template <ranks_in_levels P>
struct forwards_levels<P> {
  static constexpr index_t priority_levels = P::priority_levels;
};
template <class P>
struct forwards_tie_rule {};
template <releases_newest_of_equals P>
struct forwards_tie_rule<P> {
  static constexpr bool newest_first = true;
};
template <class P>
struct forwards_positions {};
template <class P>
  requires requires {
    P::default_positions;
  }
struct forwards_positions<P> {
  static constexpr position_scheme default_positions = P::default_positions;
};

}  // namespace detail

/// Base of an adaptor: `template <class P> struct name : forwards<name<P>, P> { P of{}; ... };`.
/// (g++ -Wextra warns of the base when an adaptor is written with designated initialisers; it is
/// empty.) A member of the adaptor hides the one here. `sinks_and_window` is not forwarded: an
/// adaptor that keeps other tokens would break what it promises.
template <class Adaptor, eviction_policy P>
struct forwards : detail::forwards_fixed_priority<P>,
                  detail::forwards_levels<P>,
                  detail::forwards_tie_rule<P>,
                  detail::forwards_positions<P> {
  static constexpr scope default_scope = P::default_scope;
  using slot_state = slot_state_of<P>;
  using lane_state = lane_state_of<P>;

  ADORE_HOST_DEVICE constexpr P const& inner() const noexcept {
    return static_cast<Adaptor const&>(*this).of;
  }
  constexpr void validate() const { inner().validate(); }

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return inner().budget(); }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot,
                                                  lane_view lane,
                                                  slot_state const& state,
                                                  lane_state const& lane_memory) const noexcept {
    return priority_of(inner(), slot, lane, state, lane_memory);
  }

  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view lane) const noexcept requires
      protects_first<P> {
    return inner().protected_first(lane);
  }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view lane) const noexcept requires
      protects_newest<P> {
    return inner().protected_newest(lane);
  }
  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept requires
      weighs_queries<P> {
    return inner().query_weight(later);
  }
  ADORE_HOST_DEVICE constexpr void observe(slot_state& state,
                                           slot_view slot,
                                           lane_view lane,
                                           float weight,
                                           index_t queries) const noexcept requires
      observes_attention<P> {
    inner().observe(state, slot, lane, weight, queries);
  }
  ADORE_HOST_DEVICE constexpr void scale(slot_state& state,
                                         float factor) const noexcept requires scales_scores<P> {
    inner().scale(state, factor);
  }
  ADORE_HOST_DEVICE constexpr bool pools_each_head() const noexcept requires pools_prompt<P> {
    return inner().pools_each_head();
  }
  ADORE_HOST_DEVICE constexpr float pooled(float const* votes,
                                           index_t count,
                                           index_t which) const noexcept requires pools_prompt<P> {
    return inner().pooled(votes, count, which);
  }
  ADORE_HOST_DEVICE constexpr bool relent(lane_state& state,
                                          lane_view lane,
                                          float lowest) const noexcept requires relents<P> {
    return inner().relent(state, lane, lowest);
  }
  ADORE_HOST_DEVICE constexpr index_t granule() const noexcept requires releases_blocks<P> {
    return inner().granule();
  }
  ADORE_HOST_DEVICE constexpr void score_key(
      slot_state& state, float squared_norm) const noexcept requires scores_keys<P> {
    inner().score_key(state, squared_norm);
  }
  ADORE_HOST_DEVICE constexpr void score(slot_state& state,
                                         float logit) const noexcept requires scores_tokens<P> {
    inner().score(state, logit);
  }
  ADORE_HOST_DEVICE constexpr index_t recall_count() const noexcept requires recalls_tokens<P> {
    return inner().recall_count();
  }
  ADORE_HOST_DEVICE constexpr void hear(slot_state& state,
                                        lane_state& lane,
                                        slot_view slot,
                                        index_t token) const noexcept requires reads_tokens<P> {
    inner().hear(state, lane, slot, token);
  }
  ADORE_HOST_DEVICE constexpr position_t rotary_position(
      slot_state const& state) const noexcept requires numbers_tokens<P> {
    return inner().rotary_position(state);
  }
  ADORE_HOST_DEVICE constexpr bool sees(slot_view query,
                                        slot_state const& query_state,
                                        slot_view key,
                                        slot_state const& key_state,
                                        head_view head) const noexcept requires masks_attention<P> {
    return inner().sees(query, query_state, key, key_state, head);
  }
  ADORE_HOST_DEVICE constexpr bool sees_in_prompt(
      position_t query, position_t key) const noexcept requires masks_prompt<P> {
    return inner().sees_in_prompt(query, key);
  }
  ADORE_HOST_DEVICE constexpr position_t last_markable(lane_view lane) const noexcept requires
      marks_tokens<P> {
    return inner().last_markable(lane);
  }
  ADORE_HOST_DEVICE constexpr index_t marks(lane_view lane) const noexcept requires
      marks_tokens<P> {
    return inner().marks(lane);
  }
  ADORE_HOST_DEVICE constexpr void mark(slot_state& state,
                                        bool chosen) const noexcept requires marks_tokens<P> {
    inner().mark(state, chosen);
  }
  ADORE_HOST_DEVICE constexpr void unmark(slot_state& state) const noexcept requires
      marks_tokens<P> {
    inner().unmark(state);
  }
  ADORE_HOST_DEVICE constexpr top_k_limit attention_limit() const noexcept requires
      limits_attention<P> {
    return inner().attention_limit();
  }
  ADORE_HOST_DEVICE constexpr index_t prompt_budget() const noexcept requires budgets_prompt<P> {
    return inner().prompt_budget();
  }
  constexpr index_t lane_budget(kv_shape shape,
                                index_t layer,
                                index_t kv_head) const noexcept requires budgets_lanes<P> {
    return inner().lane_budget(shape, layer, kv_head);
  }
  constexpr index_t lane_prompt_budget(kv_shape shape,
                                       index_t layer,
                                       index_t kv_head,
                                       index_t tokens) const noexcept requires
      budgets_prompt_lanes<P> {
    return inner().lane_prompt_budget(shape, layer, kv_head, tokens);
  }
  void divide_budget(float const* priorities,
                     index_t kv_heads,
                     index_t tokens,
                     index_t* budgets) const requires divides_budget<P> {
    inner().divide_budget(priorities, kv_heads, tokens, budgets);
  }
};

/// What a policy protects in a lane of a given budget, 0 where it protects nothing.
template <eviction_policy P>
ADORE_HOST_DEVICE constexpr index_t first_protected_by(P const& policy, lane_view lane) noexcept {
  if constexpr (protects_first<P>) {
    return policy.protected_first(lane);
  } else {
    return 0;
  }
}
template <eviction_policy P>
ADORE_HOST_DEVICE constexpr index_t newest_protected_by(P const& policy, lane_view lane) noexcept {
  if constexpr (protects_newest<P>) {
    return policy.protected_newest(lane);
  } else {
    return 0;
  }
}

}  // namespace adore
