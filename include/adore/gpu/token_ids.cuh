// SPDX-License-Identifier: Apache-2.0
// The ids of a step's new tokens on their way to a policy that reads them, and the rotary positions
// of a policy that numbers tokens itself.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace adore::gpu {

namespace detail {

inline constexpr unsigned hearing_threads = 128;

/// A thread per lane, which hears its tokens one after the other.
///
/// @param accepted  [row] nullptr: the step begins; else it is heard again, up to there
template <reads_tokens P>
__global__ void __launch_bounds__(hearing_threads) hear_kernel(ledger_view<P> const ledger,
                                                               P const policy,
                                                               index_t const* ids,
                                                               index_t const* accepted,
                                                               lane_state_of<P>* before) {
  auto const lane = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  index_t const row = lane / ledger.lanes_per_row();
  if (row >= ledger.row_count) return;
  row_books const& books = ledger.rows[row];
  if (books.count == 0) return;
  bool const again = accepted != nullptr;
  lane_state_of<P> state = again ? before[lane] : *ledger.lane_state(lane);
  if (!again) before[lane] = state;
  index_t const count = again ? accepted[row] : books.count;
  for (index_t j = 0; j < count; ++j) {
    position_t const p = books.next + j;
    index_t const slot =
        ledger.new_slots[static_cast<std::int64_t>(lane) * ledger.max_new + p % ledger.max_new];
    // without a slot the token is lost, but it was heard
    slot_state_of<P> heard{};
    if constexpr (scores_tokens<P>) {
      if (slot >= 0) heard = ledger.states_of(lane)[slot];
    }
    policy.hear(heard, state, slot_view{p, p}, ids[row * ledger.max_new + j]);
    if (slot >= 0) ledger.states_of(lane)[slot] = heard;
  }
  *ledger.lane_state(lane) = state;
}

}  // namespace detail

/// Tells a policy which tokens a step brings, and takes back what it learned from rejected ones.
template <eviction_policy P>
class device_hearing {
 public:
  explicit device_hearing(ledger_view<P> const& ledger)
      : before_(reads_tokens<P>
                    ? static_cast<std::size_t>(ledger.row_count * ledger.lanes_per_row())
                    : 0) {}

  /// Before the step's attention, its rotation if the policy numbers tokens, and its decision.
  ///
  /// @param ids  [token] of the vocabulary, padded: row * max_new + j; device memory
  /// Stream: asynchronous, capturable.
  void hear_async(cudaStream_t stream,
                  ledger_view<P> const& ledger,
                  P const& policy,
                  index_t const* ids) requires reads_tokens<P> {
    launch(stream, ledger, policy, ids, nullptr);
  }
  /// Before a decision that keeps a part of the step's tokens only.
  ///
  /// @param ids       what the step began with
  /// @param accepted  [row] as in `decide_args`; device memory
  /// Stream: asynchronous, capturable.
  void hear_accepted_async(cudaStream_t stream,
                           ledger_view<P> const& ledger,
                           P const& policy,
                           index_t const* ids,
                           index_t const* accepted) requires reads_tokens<P> {
    launch(stream, ledger, policy, ids, accepted);
  }

 private:
  void launch(cudaStream_t stream,
              ledger_view<P> const& ledger,
              P const& policy,
              index_t const* ids,
              index_t const* accepted) requires reads_tokens<P> {
    auto const lanes = static_cast<unsigned>(ledger.row_count * ledger.lanes_per_row());
    if (lanes == 0) return;
    unsigned const blocks = (lanes + detail::hearing_threads - 1) / detail::hearing_threads;
    detail::hear_kernel<P><<<blocks, detail::hearing_threads, 0, stream>>>(
        ledger, policy, ids, accepted, before_.data());
    check(cudaGetLastError());
  }

  device_buffer<lane_state_of<P>> before_;  // [lane] as the step found them
};

/// What a policy numbers a step's tokens, once it has heard them: for `rotate_async`. Read from the
/// lanes of the layer that rotates, where its tokens still are: earlier layers may have decided,
/// and have reserved the slots of the next step.
template <numbers_tokens P>
struct numbered_positions {
  ledger_view<P> ledger;
  P policy;
  index_t layer;

  __device__ position_t operator()(index_t token) const {
    index_t const row = token / ledger.max_new;
    if (row >= ledger.row_count) return no_position;
    row_books const& books = ledger.rows[row];
    if (token - row * ledger.max_new >= books.count) return no_position;
    index_t const place = (books.next + token - row * ledger.max_new) % ledger.max_new;
    index_t const lane = ledger.lane(row, layer, 0);  // all heads have heard the same
    index_t const slot = ledger.new_slots[static_cast<std::int64_t>(lane) * ledger.max_new + place];
    return slot < 0 ? no_position : policy.rotary_position(ledger.states_of(lane)[slot]);
  }
};

}  // namespace adore::gpu
