// SPDX-License-Identifier: Apache-2.0
// The stages of a decision one by one, for engines that come in between: that look at the victims
// before they go, or name them themselves. `decide_async` is all three in one launch.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

namespace adore::gpu {

/// The policy learns of the step: new tokens get their first state, and it observes the weights.
/// Once per step, also where it does not observe, see `unobserved_step`.
///
/// @param layer  of the lanes; in scope model 0
/// @throws std::logic_error as `decide_async`, cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P>
void observe_async(cudaStream_t stream,
                   ledger_view<P> const& ledger,
                   P const& policy,
                   index_t layer,
                   decide_args const& args) {
  detail::decide_in_part<detail::decision_part::observation>(
      "observe_async", stream, ledger, policy, layer, args);
}

/// Lists the tokens that a lane gives up at the end of the step. Afterwards the ledger is as it
/// was, but for lane states of policies that relent.
///
/// @param args     `accepted`
/// @param victims  to be written; lanes of rows without accepted tokens have none
/// @throws std::logic_error if there is no room for the victims of a full lane, or no such layer,
///         cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P>
void select_async(cudaStream_t stream,
                  ledger_view<P> const& ledger,
                  P const& policy,
                  index_t layer,
                  decide_args const& args,
                  victims_view const& victims) {
  detail::decide_in_part<detail::decision_part::selection>(
      "select_async", stream, ledger, policy, layer, args, victims);
}

/// Releases tokens, and reserves slots for the tokens to come; `advance_async` ends the step.
///
/// @param args     `accepted`, `advances`
/// @param victims  from `select_async` or of the engine's own choice: each a token of the lane in
///                 its slot, none of them twice, and in a full lane as many as have come, or tokens
///                 to come find no slot (`device_ledger::tokens_without_room`)
/// @throws std::logic_error as `select_async`, cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P>
void release_async(cudaStream_t stream,
                   ledger_view<P> const& ledger,
                   P const& policy,
                   index_t layer,
                   decide_args const& args,
                   victims_view const& victims) {
  detail::decide_in_part<detail::decision_part::release>(
      "release_async", stream, ledger, policy, layer, args, victims);
}

}  // namespace adore::gpu
