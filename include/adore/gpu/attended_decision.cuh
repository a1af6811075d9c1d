// SPDX-License-Identifier: Apache-2.0
// The end of a lane's step behind its attention: the decision, with all that it asks for from where
// attention has it.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/chunk_positions.cuh"
#include "adore/gpu/key_norms.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_head.cuh"
#include "adore/gpu/lane_rows.cuh"
#include "adore/gpu/lane_weights.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <type_traits>

namespace adore::gpu::detail {

template <class T, int Channels, int QueryRows, class P, class View, class Guests, class Plan>
class attended_decision {
 public:
  __device__ __forceinline__ attended_decision(attend_args<T, View, Guests> const& args,
                                               ledger_view<P> const& ledger,
                                               P const& policy,
                                               Plan const& plan,
                                               attend_shared<QueryRows>& shared)
      : args_(args), ledger_(ledger), policy_(policy), plan_(plan), shared_(shared) {}

  /// Squared norms of the new keys, for policies that score keys.
  __device__ __forceinline__ void measure_keys(lane_of_step const& of) {
    for (index_t j = warp_in_block(); j < of.count(); j += warps_in_block()) {
      float const squares =
          args_.key_norms != nullptr
              ? args_.key_norms[(of.row * ledger_.kv_heads + of.head) * ledger_.max_new + j]
              : squared_norm_in_warp(args_.k(of.token + j, of.head), Channels);
      if (lane_in_warp() == 0) shared_.norms[j] = squares;
    }
  }

  /// The lane's step ends: see `decide_lane`.
  ///
  /// @param positions  of the block's last chunk
  __device__ __forceinline__ void decide(
      lane_of_step const& of,
      lane_head<T, Channels, P, Plan> const& fetched,
      chunk_positions<P, Plan> const& positions,
      lane_weights<QueryRows, P, T, View, Guests, Plan> const& weights) {
    index_t const first = of.share.first;
    decide_lane<4>(
        ledger_,
        policy_,
        of.row,
        args_.layer,
        of.head,
        of.books,
        of.count(),
        of.share,
        [&](index_t slot) {
          return plan_.block_chunks == 1
                     ? positions.four(slot - first)
                     : neighbours_at<4>(ledger_.positions + ledger_.cell(of.lane) + slot);
        },
        [&](index_t slot) {
          if constexpr (std::is_empty_v<slot_state_of<P>>) {
            return neighbours<slot_state_of<P>, 4>{};
          } else {
            return plan_.has_states ? fetched.four_states(slot - first)
                                    : passing_neighbours_at<4>(ledger_.states_of(of.lane) + slot);
          }
        },
        [&](index_t slot) { return weights.observed(of, slot - first); },
        [&](index_t j) { return shared_.norms[j]; },
        shared_.decision);
  }

 private:
  attend_args<T, View, Guests> const& args_;
  ledger_view<P> const& ledger_;
  P const& policy_;
  Plan const& plan_;
  attend_shared<QueryRows>& shared_;
};

}  // namespace adore::gpu::detail
