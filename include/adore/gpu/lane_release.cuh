// SPDX-License-Identifier: Apache-2.0
// Releases from a lane until it is within its budget, and reserves the slots of the tokens to come.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/lane_victims.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

/// The first slots that become free in a step, as the leader knows them: those that are set aside
/// anew.
class freed_slots {
 public:
  __device__ __forceinline__ void add(index_t slot) {
#pragma unroll
    for (index_t i = 0; i < most_new_tokens; ++i) {  // keeps them in registers
      if (i == count_) slots_[i] = slot;
    }
    ++count_;
  }
  __device__ __forceinline__ index_t slot(index_t number) const {
    index_t slot = -1;
#pragma unroll
    for (index_t i = 0; i < most_new_tokens; ++i) {
      if (i == number) slot = slots_[i];
    }
    return slot;
  }
  /// All threads know it.
  __device__ __forceinline__ index_t count() const {
    return count_;
  }

 private:
  index_t slots_[most_new_tokens];
  index_t count_ = 0;
};

/// Sets slots aside for the positions next + max_new .. next + max_new + accepted - 1: those just
/// freed, then older holes, then such as were never used; and closes the books. All threads of the
/// lane call it together.
///
/// @param book  before the step
template <eviction_policy P, int Warps>
__device__ __forceinline__ void reserve_slots(lane_end<P> const& end,
                                              lane_books const& book,
                                              freed_slots const& freed,
                                              decision_scratch<Warps>& shared,
                                              unsigned& turn) {
  ledger_view<P> const& ledger = end.ledger;
  lane_share const& share = end.share;
  position_t const* const positions = end.positions();
  index_t extent = book.extent;
  index_t const end_of_tokens = ledger.slots - ledger.guests;
  index_t holes = min(extent, end_of_tokens) - book.occupied - ledger.max_new;
  for (index_t i = 0; i < end.accepted; ++i) {
    index_t slot = -1;
    if (i < freed.count()) {
      slot = freed.slot(i);
    } else if (holes > 0) {
      keyed_slot hole{no_key, -1};
      for (index_t s = share.first + share.thread(); s < share.end; s += share.threads()) {
        if (hole.slot < 0 && __ldcg(positions + s) == no_position) {
          hole = {static_cast<std::uint64_t>(s), s};
        }
      }
      slot = smallest_in_lane(hole, share, shared, turn).slot;
      --holes;
    } else if (extent < end_of_tokens) {
      slot = extent++;
    }
    if (end.leads()) {
      position_t const coming = end.next + ledger.max_new + i;
      ledger.new_slots[end.lane * ledger.max_new + coming % ledger.max_new] = slot;
      if (slot >= 0) {
        end.reserve(slot, coming);
      } else {
        atomicAdd(ledger.lanes_without_room, 1U);
      }
    }
    if (holes > 0) sync_lane(share);  // the next search must see this reservation
  }
  if (end.leads()) {
    ledger.lanes[end.lane] = {end.view.occupied, extent, book.budget};
    if constexpr (!std::is_empty_v<lane_state_of<P>>) {
      *ledger.lane_state(end.lane) = end.lane_state;
    }
  }
}

/// The general end of a lane's step; all threads of the lane call it together. Out of line, since
/// most steps of a full lane release the smallest key and are done.
///
/// @param looked  whether there may be something to release: `lowest` was looked for
template <eviction_policy P, int Warps>
static __device__ __noinline__ void release_and_reserve(lane_end<P> end,
                                                        lane_books book,
                                                        bool looked,
                                                        keyed_slot lowest,
                                                        decision_scratch<Warps>& shared,
                                                        unsigned turn) {
  freed_slots freed;
  if (looked) {
    keyed_slot const last =
        for_victims(end, lowest, shared, turn, unbounded, [&](keyed_slot gone, position_t p) {
          freed.add(gone.slot);
          if (end.leads()) end.tell(p, gone.slot);
        });
    if (end.leads() && last.slot >= 0) end.positions()[last.slot] = no_position;
    if (freed.count() > 1) sync_lane(end.share);  // all are free before the leader reserves them
  }
  reserve_slots(end, book, freed, shared, turn);
}

}  // namespace adore::gpu::detail
