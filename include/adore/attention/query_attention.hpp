// SPDX-License-Identifier: Apache-2.0
// Host attention of one query in all heads of a layer over its lanes: masks, dynamic top-K, output,
// and the weight of each attended token per KV head.
#pragma once

#include "adore/attention/decode_attention.hpp"
#include "adore/attention/gqa.hpp"
#include "adore/attention/top_k.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/kv_view.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace adore {

/// What one query may attend in one KV head.
template <eviction_policy P>
struct attended_lane {
  lane_slots<P> lane;
  std::span<index_t const> slots;         ///< ascending position, the query's own last
  std::span<position_t const> positions;  ///< of these slots
};

/// Scratch memory and the computation. One object serves one thread.
template <eviction_policy P>
class query_attention {
 public:
  /// @param lanes  one per KV head
  /// @param query, out  [head, channel] of this query
  /// @param turn_key  `float const* (kv_head, rank, slot)`: the key as the query sees it, or
  ///                  nullptr: as it is stored
  /// @param sink    called as sink(kv_head, weights) with [rank] weights, reduced over the group
  template <slot_addressed Keys, slot_addressed Values, class TurnKey, class Sink>
  void operator()(P const& policy,
                  Keys keys,
                  Values values,
                  index_t row,
                  index_t layer,
                  std::span<attended_lane<P> const> lanes,
                  float const* query,
                  float* out,
                  index_t heads,
                  float scale,
                  gqa_reduction reduction,
                  TurnKey&& turn_key,
                  Sink&& sink) {
    auto const kv_heads = static_cast<index_t>(lanes.size());
    index_t const group = heads / kv_heads;
    index_t const channels = keys.channels;
    offsets_.assign(1, 0);
    for (index_t head = 0; head < heads; ++head) {
      offsets_.push_back(offsets_.back() + lanes[index(head / group)].slots.size());
    }
    if (probabilities_.size() < offsets_.back()) probabilities_.resize(offsets_.back());

    for (index_t head = 0; head < heads; ++head) {
      index_t const kv_head = head / group;
      attended_lane<P> const& lane = lanes[index(kv_head)];
      std::span<float> const p = probabilities(head);
      float const* const q = query + static_cast<stride_t>(head) * channels;
      for (std::size_t rank = 0; rank < p.size(); ++rank) {
        index_t const slot = lane.slots[rank];
        float const* const turned = turn_key(kv_head, static_cast<index_t>(rank), slot);
        p[rank] = scale * (turned != nullptr
                               ? dot(q, turned, channels, 1)
                               : dot(q, keys(row, kv_head, slot), channels, keys.channel_stride));
      }
      if constexpr (masks_attention<P>) {
        index_t const own = lane.slots.back();
        for (std::size_t rank = 0; rank < p.size(); ++rank) {
          index_t const slot = lane.slots[rank];
          if (!policy.sees(lane.lane.view(own),
                           lane.lane.state(own),
                           lane.lane.view(slot),
                           lane.lane.state(slot),
                           head_view{layer, head, heads})) {
            p[rank] = keep_never;
          }
        }
      }
      if constexpr (!limits_attention<P>) softmax(p);
    }
    if constexpr (limits_attention<P>) limit(policy.attention_limit(), heads, group);

    for (index_t head = 0; head < heads; ++head) {
      index_t const kv_head = head / group;
      std::span<float const> const p = probabilities(head);
      attention_output(p,
                       values,
                       row,
                       kv_head,
                       lanes[index(kv_head)].slots,
                       out + static_cast<stride_t>(head) * channels);
      if (weights_.size() < p.size()) weights_.resize(p.size());
      index_t const member = head % group;
      reduce_head(
          reduction, weights_.data(), p.data(), static_cast<index_t>(p.size()), member, group);
      if (member == group - 1) {
        sink(kv_head, std::span<float const>(weights_.data(), p.size()));
      }
    }
  }

 private:
  static std::size_t index(index_t i) { return static_cast<std::size_t>(i); }
  std::span<float> probabilities(index_t head) {
    return {probabilities_.data() + offsets_[index(head)],
            offsets_[index(head) + 1] - offsets_[index(head)]};
  }

  /// Turns all heads' logits into probabilities over their strongest keys.
  void limit(top_k_limit const& limit, index_t heads, index_t group) {
    index_t const together = limit.scope == top_k_scope::head      ? 1
                             : limit.scope == top_k_scope::kv_head ? group
                                                                   : heads;
    for (index_t first = 0; first < heads; first += together) {
      std::size_t const n = probabilities(first).size();
      score_.assign(n, 0.0F);
      selected_.resize(n);
      for (index_t head = first; head < first + together; ++head) {
        std::span<float const> const logits = probabilities(head);
        dense_.assign(logits.begin(), logits.end());
        // one head ranks by its logits; several add up their probabilities
        if (together > 1) softmax(dense_);
        for (std::size_t i = 0; i < n; ++i) score_[i] += dense_[i];
      }
      mark_top_k(score_, limit.count, limit.include_self, selected_);
      for (index_t head = first; head < first + together; ++head) {
        std::span<float> const p = probabilities(head);
        for (std::size_t i = 0; i < n; ++i) {
          if (selected_[i] == 0) p[i] = keep_never;
        }
        softmax(p);
      }
    }
  }

  std::vector<std::size_t> offsets_;    // [head + 1] into probabilities_
  std::vector<float> probabilities_;    // [head][rank]
  std::vector<float> weights_;          // [rank]
  std::vector<float> score_, dense_;    // [rank]
  std::vector<std::uint8_t> selected_;  // [rank]
};

}  // namespace adore
