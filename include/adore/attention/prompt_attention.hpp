// SPDX-License-Identifier: Apache-2.0
// Dense causal attention over a prompt, with the sums over its queries that a policy asks for.
#pragma once

#include "adore/attention/decode_attention.hpp"
#include "adore/attention/gqa.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/kv_view.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// K and V of a prompt in one layer, [kv_head, token, channel], keys already turned.
struct prompt_kv {
  std::span<float const> keys, values;
  index_t tokens, kv_heads, channels;
  kv_view<float const> key_view() const { return {keys.data(), 1, kv_heads, tokens, channels}; }
  kv_view<float const> value_view() const { return {values.data(), 1, kv_heads, tokens, channels}; }
};

/// Attends one KV head's group of query heads over the whole prompt.
///
/// @param lane     positions, rotary positions and states of the prompt's tokens, in order
/// @param query    [token, head, channel], turned
/// @param out      [token, head, channel]
/// @param weights  out, [token]: sum over the queries of query_weight x reduced probability; empty
///                 if nobody asks
/// Source: policies.md 0.7 (full_then_select), 6.3, 17.2.
template <eviction_policy P>
void prompt_attention(P const& policy,
                      prompt_kv const& kv,
                      lane_slots<P> const& lane,
                      index_t layer,
                      index_t kv_head,
                      token_view<float const> query,
                      token_view<float> out,
                      float scale,
                      gqa_reduction reduction,
                      std::span<float> weights) {
  index_t const n = kv.tokens;
  index_t const heads = query.heads;
  index_t const group = heads / kv.kv_heads;
  auto const size = static_cast<std::size_t>(n);
  std::vector<index_t> in_order(size);
  for (index_t i = 0; i < n; ++i) in_order[static_cast<std::size_t>(i)] = i;
  bool each_head = false;
  if constexpr (pools_prompt<P>) each_head = policy.pools_each_head();
  std::vector<float> reduced(size);
  std::vector<float> probabilities(size);
  std::vector<float> sums(each_head ? static_cast<std::size_t>(group) * size : size, 0.0F);

  for (index_t i = 0; i < n; ++i) {
    std::span<index_t const> const visible(in_order.data(), static_cast<std::size_t>(i) + 1);
    std::span<float> const p(probabilities.data(), visible.size());
    float const factor = query_weight_of(policy, n - 1 - i);
    for (index_t member = 0; member < group; ++member) {
      index_t const head = kv_head * group + member;
      attention_logits(query(i, head), kv.key_view(), 0, kv_head, visible, scale, p.data());
      for (index_t j = 0; j < i; ++j) {
        bool seen = true;
        if constexpr (masks_prompt<P>) {
          seen = policy.sees_in_prompt(lane.positions[i], lane.positions[j]);
        }
        if constexpr (masks_attention<P>) {
          seen = seen && policy.sees(lane.view(i),
                                     lane.state(i),
                                     lane.view(j),
                                     lane.state(j),
                                     head_view{layer, head, heads});
        }
        if (!seen) p[static_cast<std::size_t>(j)] = keep_never;
      }
      softmax(p);
      attention_output(
          std::span<float const>(p), kv.value_view(), 0, kv_head, visible, out(i, head));
      if (weights.empty() || factor == 0.0F) continue;
      if (each_head) {
        float* const sum = sums.data() + static_cast<std::size_t>(member) * size;
        for (index_t j = 0; j <= i; ++j) sum[j] += factor * p[static_cast<std::size_t>(j)];
      } else {
        reduce_head(reduction, reduced.data(), p.data(), i + 1, member, group);
        if (member != group - 1) continue;
        for (std::size_t j = 0; j < p.size(); ++j) sums[j] += factor * reduced[j];
      }
    }
  }
  if (weights.empty()) return;

  if constexpr (pools_prompt<P>) {
    // the protected newest tokens neither vote for themselves nor smear into their neighbours
    lane_view const end{.newest = lane.positions[n - 1],
                        .occupied = n,
                        .budget = n,
                        .layer = layer,
                        .kv_head = kv_head,
                        .seed = 0,
                        .ends_prompt = true};
    index_t const candidates = candidates_of(policy, end).last + 1 - lane.positions[0];
    auto const pool = [&](float const* votes, float* pooled) {
      for (index_t j = 0; j < n; ++j) {
        pooled[j] = j < candidates ? policy.pooled(votes, candidates, j) : votes[j];
      }
    };
    for (index_t member = 0; member < (each_head ? group : 1); ++member) {
      pool(sums.data() + static_cast<std::size_t>(member) * size, reduced.data());
      if (each_head) {
        reduce_head(reduction, weights.data(), reduced.data(), n, member, group);
      } else {
        std::copy(reduced.begin(), reduced.end(), weights.begin());
      }
    }
  } else {
    std::copy(sums.begin(), sums.end(), weights.begin());
  }
}

}  // namespace adore
