// SPDX-License-Identifier: Apache-2.0
// What a policy must offer, and what it may offer: one concept per ability. An ability that a
// policy lacks costs nothing.
#pragma once

#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <string_view>
#include <type_traits>

namespace adore {

namespace detail {
template <class P>
struct slot_state_type {
  using type = no_state;
};
template <class P>
  requires requires {
    typename P::slot_state;
  }
struct slot_state_type<P> {
  using type = typename P::slot_state;
};
template <class P>
struct lane_state_type {
  using type = no_state;
};
template <class P>
  requires requires {
    typename P::lane_state;
  }
struct lane_state_type<P> {
  using type = typename P::lane_state;
};
}  // namespace detail

/// What a policy remembers about each slot, `no_state` if it says nothing.
template <class P>
using slot_state_of = typename detail::slot_state_type<P>::type;

/// What a policy remembers about each lane, `no_state` if it says nothing.
template <class P>
using lane_state_of = typename detail::lane_state_type<P>::type;

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

// ------------------------------------------------------------------ protection

/// Tokens with a position below `protected_first` are released last of all.
template <class P>
concept protects_first = requires(P const& p, lane_view lane) {
  { p.protected_first(lane) } -> std::same_as<index_t>;
};

/// So many newest tokens are released only when nothing else is left but the first ones.
template <class P>
concept protects_newest = requires(P const& p, lane_view lane) {
  { p.protected_newest(lane) } -> std::same_as<index_t>;
};

// ------------------------------------------------------------------ what an attention weight means

/// Learns from attention. `weight` is the sum over the call's queries of query_weight x
/// probability; `queries` says how many there were.
template <class P>
concept observes_attention = requires(P const& p,
                                      slot_state_of<P>& state,
                                      slot_view slot,
                                      lane_view lane,
                                      float weight,
                                      index_t queries) {
  p.observe(state, slot, lane, weight, queries);
};

/// Has a score that can fade.
template <class P>
concept scales_scores = requires(P const& p, slot_state_of<P>& state, float factor) {
  p.scale(state, factor);
};

/// Says how much a query counts that has `later` queries after it in the same call. Absent: 1.
template <class P>
concept weighs_queries = requires(P const& p, index_t later) {
  { p.query_weight(later) } -> std::same_as<float>;
};

/// Replaces a prompt token's weight by one pooled over its neighbours. `weights` holds the `count`
/// prompt tokens before the protected newest ones. `pools_each_head` asks for pooling before the
/// query heads are reduced.
template <class P>
concept pools_prompt = requires(P const& p, float const* weights, index_t count, index_t which) {
  { p.pooled(weights, count, which) } -> std::same_as<float>;
  { p.pools_each_head() } -> std::same_as<bool>;
};

// ------------------------------------------------------------------ how priorities change

/// A slot's priority is fixed when its token arrives (policies.md, Theorem S): the host keeps the
/// candidates in a heap, the device in a warp's arg-min.
template <class P>
concept ranks_once = requires {
  requires P::fixed_priority;
};

/// ... and it is one of 0, 1, ..., priority_levels - 1 or keep_never: the host keeps rings.
template <class P>
concept ranks_in_levels = ranks_once<P> && requires {
  { P::priority_levels } -> std::convertible_to<index_t>;
};

/// Changes its own lane state when a full lane has no candidate it would rather give up; returns
/// whether priorities may have changed. `lowest` is the lowest priority among the candidates. It is
/// asked again until that priority is lower; if the policy ends it before, all its changes are
/// taken back.
template <class P>
concept relents = requires(P const& p, lane_state_of<P>& lane_state, lane_view lane, float lowest) {
  { p.relent(lane_state, lane, lowest) } -> std::same_as<bool>;
};

/// Releases whole blocks of `granule` consecutive positions.
template <class P>
concept releases_blocks = requires(P const& p) {
  { p.granule() } -> std::same_as<index_t>;
};

/// Among equal priorities the newest goes first instead of the oldest.
template <class P>
concept releases_newest_of_equals = requires {
  requires P::newest_first;
};

/// A policy whose lanes always hold the first tokens and an unbroken run of the newest ones.
template <class P>
concept keeps_sinks_and_window = requires {
  requires P::sinks_and_window;
};

// ------------------------------------------------------------------ what else a policy looks at

/// Looks at the key of a new token, through its squared norm; called once per KV head of the lane.
template <class P>
concept scores_keys = requires(P const& p, slot_state_of<P>& state, float squared_norm) {
  p.score_key(state, squared_norm);
};

/// Looks at the vocabulary id of a new token.
template <class P>
concept reads_tokens = requires(P const& p,
                                slot_state_of<P>& state,
                                lane_state_of<P>& lane_state,
                                slot_view slot,
                                index_t token) {
  p.hear(state, lane_state, slot, token);
};

/// Numbers tokens for RoPE itself (after `hear`): positions may repeat.
template <class P>
concept numbers_tokens = reads_tokens<P> && requires(P const& p, slot_state_of<P> const& state) {
  { p.rotary_position(state) } -> std::same_as<position_t>;
};

/// Takes the score that a controller computed for a new token.
template <class P>
concept scores_tokens = requires(P const& p, slot_state_of<P>& state, float logit) {
  p.score(state, logit);
};

/// Wants up to `recall_count` released tokens back that a layer's own query asks for.
template <class P>
concept recalls_tokens = requires(P const& p) {
  { p.recall_count() } -> std::same_as<index_t>;
};

// ------------------------------------------------------------------ what a query may attend

/// One query head of one layer.
struct head_view {
  index_t layer, head, heads;
};

/// Hides keys from queries at every step.
template <class P>
concept masks_attention = requires(P const& p,
                                   slot_view query,
                                   slot_state_of<P> const& query_state,
                                   slot_view key,
                                   slot_state_of<P> const& key_state,
                                   head_view head) {
  { p.sees(query, query_state, key, key_state, head) } -> std::same_as<bool>;
};

/// Chooses after each step the `marks` best of the tokens up to `last_markable`; the others stay in
/// memory. `marks` = unbounded: this step chooses nothing.
template <class P>
concept marks_tokens = requires(P const& p, slot_state_of<P>& state, lane_view lane, bool chosen) {
  { p.last_markable(lane) } -> std::same_as<position_t>;
  { p.marks(lane) } -> std::same_as<index_t>;
  p.mark(state, chosen);
  p.unmark(state);
};

/// Hides keys from queries inside a dense prompt, where a released token would still be there.
template <class P>
concept masks_prompt = requires(P const& p, position_t query, position_t key) {
  { p.sees_in_prompt(query, key) } -> std::same_as<bool>;
};

/// Where the heads agree on one set of a query's strongest keys.
enum class top_k_scope : std::uint8_t { head, kv_head, layer };

struct top_k_limit {
  index_t count;
  top_k_scope scope;
  bool include_self;
};

/// Lets each query attend its strongest keys only (an oracle: everything must be there).
template <class P>
concept limits_attention = requires(P const& p) {
  { p.attention_limit() } -> std::same_as<top_k_limit>;
};

// ------------------------------------------------------------------ budgets

/// Keeps another number of tokens when it selects from a dense prompt than at later steps.
template <class P>
concept budgets_prompt = requires(P const& p) {
  { p.prompt_budget() } -> std::same_as<index_t>;
};

/// Gives each lane a budget of its own (PyramidKV).
template <class P>
concept budgets_lanes = requires(P const& p, kv_shape shape, index_t layer, index_t kv_head) {
  { p.lane_budget(shape, layer, kv_head) } -> std::same_as<index_t>;
};

/// ... and one for the selection from a dense prompt of `tokens` tokens.
template <class P>
concept budgets_prompt_lanes =
    requires(P const& p, kv_shape shape, index_t layer, index_t kv_head, index_t tokens) {
  { p.lane_prompt_budget(shape, layer, kv_head, tokens) } -> std::same_as<index_t>;
};

/// Divides a layer's budget among its KV heads by their prompt priorities (Ada-KV). `priorities`
/// holds [kv_head, token] candidates; `budgets` gets one number per KV head.
template <class P>
concept divides_budget = requires(
    P const& p, float const* priorities, index_t kv_heads, index_t tokens, index_t* budgets) {
  p.divide_budget(priorities, kv_heads, tokens, budgets);
};

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
