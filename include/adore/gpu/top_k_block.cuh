// SPDX-License-Identifier: Apache-2.0
// One query's attention to its strongest keys, by one block.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/lane_mask.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/lane_threshold.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/order_key.hpp"

#include <cstdint>

namespace adore::gpu::detail {

inline constexpr int top_k_warps = 8;

/// One query in the heads of a KV head, or, if all heads agree on a set, of the layer.
///
/// Two floats per slot in shared memory: a head's logits, then its probabilities; and the scores by
/// which the heads that agree choose. Logits are computed twice rather than kept for all heads.
template <class T, int Channels, class P, class View>
class top_k_block {
 public:
  struct shared_memory {
    decision_scratch<top_k_warps> counts;
    float of_warp[2][top_k_warps];
    float parts[top_k_warps][Channels];
  };

  __device__ top_k_block(attend_args<T, View> const& args,
                         ledger_view<P> const& ledger,
                         P const& policy,
                         float* dynamic,
                         shared_memory& shared)
      : args_(args),
        ledger_(ledger),
        policy_(policy),
        limit_(policy.attention_limit()),
        shared_(shared),
        row_(static_cast<index_t>(blockIdx.z)),
        j_(static_cast<index_t>(blockIdx.y)),
        books_(ledger.rows[row_]),
        own_(books_.next + j_),
        group_(args.q.heads / ledger.kv_heads),
        logits_(dynamic),
        scores_(dynamic + ledger.slots) {}

  __device__ void attend() {
    if (j_ >= books_.count) return;
    bool const whole_layer = limit_.scope == top_k_scope::layer;
    index_t const together = limit_.scope == top_k_scope::head ? 1
                             : whole_layer                     ? args_.q.heads
                                                               : group_;
    index_t const first = whole_layer ? 0 : static_cast<index_t>(blockIdx.x) * group_;
    index_t const end = whole_layer ? args_.q.heads : first + group_;
    for (index_t head = first; head < end; head += together) {
      choose(head, head + together);
      for (index_t h = head; h < head + together; ++h) attend_chosen(h);
    }
  }

 private:
  /// Calls visit(slot, position) for this thread's part of the slots with what the query may see.
  template <class Visit>
  __device__ void for_slots(Visit&& visit) const {
    position_t const* const positions = ledger_.positions + ledger_.cell(lane_);
    for (auto s = static_cast<index_t>(threadIdx.x); s < extent_;
         s += static_cast<index_t>(blockDim.x)) {
      position_t const p = positions[s];
      if (p >= 0 && p <= own_) visit(s, p);
    }
  }
  __device__ bool is_chosen(index_t s, position_t p) const {
    if (limit_.include_self && p == own_) return true;
    return order_key(scores_[s], p) >= threshold_;
  }

  /// The logits of all slots that the query may see; all threads call it, and may read them after.
  __device__ void compute_logits(index_t head) {
    index_t const kv_head = head / group_;
    lane_ = ledger_.lane(row_, args_.layer, kv_head);
    extent_ = ledger_.lanes[lane_].extent;
    T const* const query = args_.q(row_ * ledger_.max_new + j_, head);
    position_t const* const positions = ledger_.positions + ledger_.cell(lane_);
    __syncthreads();  // nobody reads what was there before
    for (index_t s = warp_in_block(); s < extent_; s += warps_in_block()) {
      position_t const p = positions[s];
      if (p < 0 || p > own_) continue;
      T const* const key = args_.keys(row_, kv_head, s);
      float dot = 0.0F;
      for (index_t c = lane_in_warp(); c < Channels; c += warp_threads) {
        dot += static_cast<float>(query[c]) * static_cast<float>(key[c]);
      }
#pragma unroll
      for (int width = 1; width < warp_threads; width *= 2) {
        dot += __shfl_xor_sync(whole_warp, dot, width);
      }
      bool visible = true;
      if constexpr (masks_attention<P>) {
        visible = sees_key(
            policy_, ledger_, lane_, books_.next, s, p, own_, {args_.layer, head, args_.q.heads});
      }
      if (lane_in_warp() == 0) logits_[s] = visible ? args_.scale * dot : keep_never;
    }
    __syncthreads();
  }

  /// The largest, or the sum, of all threads' numbers, told to all.
  template <bool Largest>
  __device__ float of_block(float own) {
    auto const join = [](float a, float b) { return Largest ? fmaxf(a, b) : a + b; };
#pragma unroll
    for (int width = 1; width < warp_threads; width *= 2) {
      own = join(own, __shfl_xor_sync(whole_warp, own, width));
    }
    if (lane_in_warp() == 0) shared_.of_warp[turn_][warp_in_block()] = own;
    __syncthreads();
    float all = shared_.of_warp[turn_][0];
    for (int w = 1; w < warps_in_block(); ++w) all = join(all, shared_.of_warp[turn_][w]);
    turn_ ^= 1U;
    return all;
  }
  struct softmax_of {
    float highest, sum;
  };
  /// Of the logits in the slots for which `counts(slot, position)`.
  template <class Counts>
  __device__ softmax_of softmax(Counts&& counts) {
    float highest = keep_never;
    for_slots([&](index_t s, position_t p) {
      if (counts(s, p)) highest = fmaxf(highest, logits_[s]);
    });
    highest = of_block<true>(highest);
    float sum = 0.0F;
    for_slots([&](index_t s, position_t p) {
      if (counts(s, p)) sum += expf(logits_[s] - highest);
    });
    return {highest, of_block<false>(sum)};
  }

  /// Finds what separates the strongest keys of the heads [first, end), which agree on a set.
  ///
  /// Source: the same rule as in attention/query_attention.hpp: one head ranks by its logits,
  ///         several add up their probabilities; among equals the newest.
  __device__ void choose(index_t first, index_t end) {
    for (index_t head = first; head < end; ++head) {
      compute_logits(head);
      if (end - first == 1) {
        for_slots([&](index_t s, position_t) { scores_[s] = logits_[s]; });
        continue;
      }
      softmax_of const all = softmax([](index_t, position_t) { return true; });
      for_slots([&](index_t s, position_t) {
        float const before = head == first ? 0.0F : scores_[s];
        scores_[s] = before + expf(logits_[s] - all.highest) / all.sum;
      });
    }
    bool const is_self_extra = limit_.include_self;
    unsigned turn = 0;
    threshold_ = reached_by_largest(limit_.count - (is_self_extra ? 1 : 0), [&](std::uint64_t key) {
      index_t count = 0;
      for_slots([&](index_t s, position_t p) {
        bool const ranked = !is_self_extra || p != own_;
        if (ranked && order_key(scores_[s], p) >= key) ++count;
      });
      return sum_in_lane(count, {}, shared_.counts, turn);
    });
  }

  /// Output, log-sum-exp and weights of one head.
  __device__ void attend_chosen(index_t head) {
    index_t const token = row_ * ledger_.max_new + j_;
    index_t const kv_head = head / group_;
    compute_logits(head);
    softmax_of const chosen = softmax([&](index_t s, position_t p) { return is_chosen(s, p); });
    if (args_.lse != nullptr && threadIdx.x == 0) {
      args_.lse[static_cast<std::int64_t>(token) * args_.q.heads + head] =
          chosen.highest + logf(chosen.sum);
    }
    for_slots([&](index_t s, position_t p) {
      logits_[s] = is_chosen(s, p) ? expf(logits_[s] - chosen.highest) / chosen.sum : 0.0F;
    });
    __syncthreads();
    if (args_.weights != nullptr) add_weights(kv_head, head - kv_head * group_);

    constexpr int each = (Channels + warp_threads - 1) / warp_threads;
    float sums[each] = {};
    position_t const* const positions = ledger_.positions + ledger_.cell(lane_);
    for (index_t s = warp_in_block(); s < extent_; s += warps_in_block()) {
      position_t const p = positions[s];
      if (p < 0 || p > own_ || logits_[s] == 0.0F) continue;  // what lies there cannot matter
      T const* const value = args_.values(row_, kv_head, s);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        index_t const c = lane_in_warp() + i * warp_threads;
        if (c < Channels) sums[i] += logits_[s] * static_cast<float>(value[c]);
      }
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      index_t const c = lane_in_warp() + i * warp_threads;
      if (c < Channels) shared_.parts[warp_in_block()][c] = sums[i];
    }
    __syncthreads();
    for (auto c = static_cast<index_t>(threadIdx.x); c < Channels;
         c += static_cast<index_t>(blockDim.x)) {
      float sum = 0.0F;
      for (int w = 0; w < warps_in_block(); ++w) sum += shared_.parts[w][c];
      args_.out(token, head)[c] = static_cast<T>(sum);
    }
  }
  /// One query head's probabilities join the weights of its KV head.
  __device__ void add_weights(index_t kv_head, index_t member) {
    float* const weights =
        args_.weights +
        (static_cast<std::int64_t>(row_ * ledger_.kv_heads + kv_head) * ledger_.max_new + j_) *
            ledger_.stride;
    position_t const* const positions = ledger_.positions + ledger_.cell(lane_);
    for (auto s = static_cast<index_t>(threadIdx.x); s < ledger_.stride;
         s += static_cast<index_t>(blockDim.x)) {
      position_t const p = s < extent_ ? positions[s] : no_position;
      float const own = p >= 0 && p <= own_ ? logits_[s] : 0.0F;
      float const before = member == 0 ? 0.0F : weights[s];
      float weight = args_.reduction == gqa_reduction::max ? fmaxf(before, own) : before + own;
      if (args_.reduction == gqa_reduction::mean && member + 1 == group_) {
        weight /= static_cast<float>(group_);
      }
      weights[s] = weight;
    }
  }

  attend_args<T, View> const& args_;
  ledger_view<P> const& ledger_;
  P const& policy_;
  top_k_limit limit_;
  shared_memory& shared_;
  index_t row_, j_;
  row_books books_;
  position_t own_;  // of the query
  index_t group_;
  float* logits_;  // [slot]
  float* scores_;  // [slot]
  unsigned turn_ = 0;
  index_t lane_ = 0, extent_ = 0;  // of the present head
  std::uint64_t threshold_ = 0;    // that the chosen reach
};

}  // namespace adore::gpu::detail
