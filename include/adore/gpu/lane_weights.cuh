// SPDX-License-Identifier: Apache-2.0
// The weights that the slots of a lane received, from the logits that its attention has left in
// shared memory: for the policy, and for whoever asked to have them.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/lane_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cstdint>

namespace adore::gpu::detail {

template <int QueryRows, class P, class T, class View, class Guests, class Plan>
class lane_weights {
 public:
  __device__ __forceinline__ lane_weights(attend_args<T, View, Guests> const& args,
                                          ledger_view<P> const& ledger,
                                          P const& policy,
                                          Plan const& plan,
                                          unsigned char* dynamic,
                                          attend_shared<QueryRows> const& shared)
      : args_(args),
        ledger_(ledger),
        policy_(policy),
        plan_(plan),
        rows_(args, plan),
        shared_(shared),
        logits_(reinterpret_cast<float*>(dynamic + plan.logits)),
        sums_(reinterpret_cast<float*>(dynamic + plan.sums)) {}

  /// Where the logits of row `r` go, base 2: [slot of the share].
  __device__ __forceinline__ float* logits(index_t r) const {
    return logits_ + r * plan_.block_slots;
  }

  /// Exports the pass's weights, and adds them up where there are several passes.
  __device__ __forceinline__ void use(lane_of_step const& of, index_t pass, bool decides) {
    if constexpr (Plan::one_query) return;  // one pass, and nobody asked for weights
    auto const threads = static_cast<index_t>(blockDim.x);
    lane_share const& share = of.share;
    index_t const first_query = rows_.query_of(pass * plan_.rows);
    // those of new tokens
    index_t const queries_here =
        min(rows_.query_of(rows_.rows(of, pass)), of.count() - first_query);
    if (plan_.exports) {
      // the last block also clears what lies behind the slots in use
      index_t const end = share.rank + 1 == share.blocks ? ledger_.stride : share.end;
      for (index_t j = 0; j < queries_here; ++j) {
        float* const to =
            args_.weights +
            (static_cast<std::int64_t>(of.row * ledger_.kv_heads + of.head) * ledger_.max_new +
             first_query + j) *
                ledger_.stride;
#pragma unroll 1
        for (index_t s = share.first + static_cast<index_t>(threadIdx.x); s < end; s += threads) {
          to[s] = s < share.end ? weight_of_query(s - share.first, j) : 0.0F;
        }
      }
    }
    if constexpr (observes_attention<P>) {
      if (decides && rows_.passes(of) > 1) {
        // the slots that this thread decides on, see `decide_lane`: no barrier lies between
#pragma unroll 1
        for (index_t s = 4 * static_cast<index_t>(threadIdx.x); s < share.end - share.first;
             s += 4 * threads) {
#pragma unroll 1
          for (index_t i = s; i < s + 4; ++i) {
            float const before = pass == 0 ? 0.0F : sums_[i];
            sums_[i] = before + weight_of_pass(of, i, first_query, queries_here);
          }
        }
      }
    }
  }

  /// What the policy observes in the slots `s` to `s` + 3 of the share.
  __device__ __forceinline__ neighbours<float, 4> observed(lane_of_step const& of,
                                                           index_t s) const {
    return rows_.passes(of) > 1 ? *reinterpret_cast<neighbours<float, 4>*>(sums_ + s)
                                : four_weights(of, s);
  }

 private:
  /// The probability of a slot under query j of the pass, reduced over the query heads.
  __device__ __forceinline__ float weight_of_query(index_t s, index_t j) const {
    float weight = 0.0F;
#pragma unroll 1
    for (index_t member = 0; member < plan_.group; ++member) {
      index_t const r = j * plan_.group + member;
      float const p =
          exp2_fast(logits_[r * plan_.block_slots + s] - shared_.lse[warp_in_block()][r]);
      weight = args_.reduction == gqa_reduction::max ? fmaxf(weight, p) : weight + p;
    }
    return args_.reduction == gqa_reduction::mean ? weight / static_cast<float>(plan_.group)
                                                  : weight;
  }
  __device__ __forceinline__ float weight_of_pass(lane_of_step const& of,
                                                  index_t s,
                                                  index_t first_query,
                                                  index_t queries_here) const {
    float weight = 0.0F;
#pragma unroll 1
    for (index_t j = 0; j < queries_here; ++j) {
      float const factor = query_weight_of(policy_, of.count() - 1 - first_query - j);
      if (factor != 0.0F) weight += factor * weight_of_query(s, j);
    }
    return weight;
  }

  /// Those of a lane that takes one pass, for the slots `s` to `s` + 3.
  __device__ __forceinline__ neighbours<float, 4> four_weights(lane_of_step const& of,
                                                               index_t s) const {
    neighbours<float, 4> weights{};
    bool const is_max = args_.reduction == gqa_reduction::max;
    float const* const lse = shared_.lse[warp_in_block()];
    float const* logits = logits_ + s;
    index_t r = 0;
#pragma unroll 1
    for (index_t j = 0; j < of.count(); ++j) {
      float factor = query_weight_of(policy_, of.count() - 1 - j);
      if (args_.reduction == gqa_reduction::mean) factor /= static_cast<float>(plan_.group);
      neighbours<float, 4> of_query{};
#pragma unroll 1
      for (index_t member = 0; member < plan_.group; ++member, ++r, logits += plan_.block_slots) {
        float4 const x = *reinterpret_cast<float4 const*>(logits);
        float const p[4] = {exp2_fast(x.x - lse[r]),
                            exp2_fast(x.y - lse[r]),
                            exp2_fast(x.z - lse[r]),
                            exp2_fast(x.w - lse[r])};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          of_query.of[i] = is_max ? fmaxf(of_query.of[i], p[i]) : of_query.of[i] + p[i];
        }
      }
      if (factor == 0.0F) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) weights.of[i] += factor * of_query.of[i];
    }
    return weights;
  }

  attend_args<T, View, Guests> const& args_;
  ledger_view<P> const& ledger_;
  P const& policy_;
  Plan const& plan_;
  lane_rows<T, View, Guests, Plan> rows_;
  attend_shared<QueryRows> const& shared_;
  float* logits_;  // [row, slot]
  float* sums_;    // [slot], where there are several passes
};

}  // namespace adore::gpu::detail
