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

  /// Exports the pass's weights, and adds them up where there are several passes. Those of a single
  /// pass are left to `observed`, if the lane is decided on.
  __device__ __forceinline__ void use(lane_of_step const& of, index_t pass, bool decides) {
    bool const is_single = rows_.passes(of) == 1;
    if (is_single && !plan_.exports) return;
    auto const threads = static_cast<index_t>(blockDim.x);
    auto const thread = static_cast<index_t>(threadIdx.x);
    lane_share const& share = of.share;
    index_t const first_query = rows_.query_of(pass * plan_.rows);
    // those of new tokens
    index_t const queries_here =
        min(rows_.query_of(rows_.rows(of, pass) - 1) + 1, of.count() - first_query);
    if (plan_.exports && share.rank + 1 == share.blocks) {  // what lies behind the slots in use
      for (index_t j = 0; j < queries_here; ++j) {
#pragma unroll 1
        for (index_t s = share.end + thread; s < ledger_.stride; s += threads) {
          *exported(of, first_query + j, s - share.first) = 0.0F;
        }
      }
    }
    if (is_single) {
      if (observes_attention<P> && decides) return;
#pragma unroll 1
      for (index_t s = 4 * thread; s < share.end - share.first; s += 4 * threads) {
        four_weights(of, s);
      }
      return;
    }
    if constexpr (Plan::one_query) return;
    if (plan_.exports) {
      for (index_t j = 0; j < queries_here; ++j) {
#pragma unroll 1
        for (index_t s = thread; s < share.end - share.first; s += threads) {
          *exported(of, first_query + j, s) = weight_of_query(s, j);
        }
      }
    }
    if constexpr (observes_attention<P>) {
      if (decides) {
        // the slots that this thread decides on, see `decide_lane`: no barrier lies between
#pragma unroll 1
        for (index_t s = 4 * thread; s < share.end - share.first; s += 4 * threads) {
#pragma unroll 1
          for (index_t i = s; i < s + 4; ++i) {
            float const before = pass == 0 ? 0.0F : sums_[i];
            sums_[i] = before + weight_of_pass(of, i, first_query, queries_here);
          }
        }
      }
    }
  }

  /// What the policy observes in the slots `s` to `s` + 3 of the share; once for each of them.
  __device__ __forceinline__ neighbours<float, 4> observed(lane_of_step const& of,
                                                           index_t s) const {
    return rows_.passes(of) > 1 ? *reinterpret_cast<neighbours<float, 4>*>(sums_ + s)
                                : four_weights(of, s);
  }

 private:
  /// Where the weight of query j of the lane in slot `s` of the share goes.
  __device__ __forceinline__ float* exported(lane_of_step const& of, index_t j, index_t s) const {
    index_t const query = (of.row * ledger_.kv_heads + of.head) * ledger_.max_new + j;
    return args_.weights + static_cast<std::int64_t>(query) * ledger_.stride + of.share.first + s;
  }
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

  /// Those of a lane that takes one pass, for the slots `s` to `s` + 3. Exports each query's.
  __device__ __forceinline__ neighbours<float, 4> four_weights(lane_of_step const& of,
                                                               index_t s) const {
    neighbours<float, 4> weights{};
    bool const is_max = args_.reduction == gqa_reduction::max;
    float const* const lse = shared_.lse[warp_in_block()];
    float const* logits = logits_ + s;
    index_t r = 0;
#pragma unroll 1
    for (index_t j = 0; j < of.count(); ++j) {
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
      if (args_.reduction == gqa_reduction::mean) {
#pragma unroll
        for (float& weight : of_query.of) weight /= static_cast<float>(plan_.group);
      }
      if (plan_.exports) put_neighbours(exported(of, j, s), of_query);
      float const factor = query_weight_of(policy_, of.count() - 1 - j);
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
