// SPDX-License-Identifier: Apache-2.0
// Who sits in the slots of the chunk that a block attends, fetched into shared memory while it
// attends the one before. Asked for tile by tile, 64 bytes each, they would come as late as K and V
// and cost the memory more than their size.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

namespace adore::gpu::detail {

/// The positions of the present chunk and of the next. Those of short lanes come with `lane_head`,
/// those of very long chunks are read where they are.
template <eviction_policy P, class Plan>
class chunk_positions {
 public:
  /// Others see the barriers after the block's next one.
  ///
  /// @param memory    [2] of `plan.chunk_slots` positions each
  /// @param arrivals  [2]
  __device__ __forceinline__ chunk_positions(ledger_view<P> const& ledger,
                                             Plan const& plan,
                                             shared_pointer memory,
                                             shared_pointer arrivals)
      : ledger_(ledger), plan_(plan), memory_(memory), arrivals_(arrivals) {
    if (threadIdx.x != asking_thread) return;
    for (unsigned b = 0; b < 2; ++b) init_arrival(arrivals + b * arrival_bytes);
    publish_arrivals();
  }

  /// Asks for those of the chunk that will be taken next. All threads call it, none of them still
  /// reads the chunk before the present one.
  __device__ __forceinline__ void request(index_t lane, slot_range slots) {
    requested_ = lane;
    if (!plan_.has_positions || plan_.positions_with_head) return;
    // whole vectors of 16 bytes: four slots at a time
    auto const bytes = static_cast<unsigned>((slots.end - slots.first + 3) / 4 * 16);
    if (threadIdx.x != asking_thread || bytes == 0) return;
    unsigned const next = which_ ^ 1U;
    shared_pointer const bar = arrivals_ + next * arrival_bytes;
    expect_bytes(bar, bytes);
    copy_bulk(memory(next), ledger_.positions + ledger_.cell(lane) + slots.first, bytes, bar);
  }
  /// Whose positions were asked for and not taken yet; -1: nobody's.
  __device__ __forceinline__ index_t requested() const { return requested_; }
  /// Makes the chunk that was asked for the present one, and waits for it.
  ///
  /// @param of_head  the buffer of the lane's head, which has come
  __device__ __forceinline__ void take(index_t lane, slot_range slots, unsigned of_head) {
    requested_ = -1;
    if (plan_.positions_with_head) {
      which_ = of_head;
      return;
    }
    which_ ^= 1U;
    stored_ = ledger_.positions + ledger_.cell(lane) + slots.first;
    if (!plan_.has_positions || slots.first == slots.end) return;
    wait_for(arrivals_ + which_ * arrival_bytes, (parities_ >> which_) & 1U);
    parities_ ^= 1U << which_;
  }

  /// In slot `s` of the present chunk.
  __device__ __forceinline__ position_t at(index_t s) const {
    return plan_.has_positions ? load_shared_4(memory(which_) + static_cast<unsigned>(s) * 4U)
                               : stored_[s];
  }
  /// In its slots `s` to `s` + 3, where `s` is a multiple of 4.
  __device__ __forceinline__ neighbours<position_t, 4> four(index_t s) const {
    if (!plan_.has_positions) return neighbours_at<4>(stored_ + s);
    return load_neighbours<4, position_t>([&](unsigned offset) {
      return load_shared_16(memory(which_) + static_cast<unsigned>(s) * 4U + offset);
    });
  }

 private:
  static constexpr unsigned asking_thread = warp_threads;  // the first warp asks for heads

  __device__ __forceinline__ shared_pointer memory(unsigned b) const {
    return memory_ + b * static_cast<unsigned>(plan_.chunk_slots) * 4U;
  }

  ledger_view<P> const& ledger_;
  Plan const& plan_;
  shared_pointer memory_, arrivals_;
  position_t const* stored_ = nullptr;  // of the present chunk
  index_t requested_ = -1;
  unsigned which_ = 1, parities_ = 0;
};

}  // namespace adore::gpu::detail
