// SPDX-License-Identifier: Apache-2.0
// What a policy may offer: one concept per ability. An ability that a policy lacks costs nothing.
#pragma once

#include "adore/policy_state.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <cstdint>

namespace adore {

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

}  // namespace adore
