// SPDX-License-Identifier: Apache-2.0
// What the ledger says of the lanes that a block comes to next, in shared memory before it is
// needed.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cstddef>

namespace adore::gpu::detail {

/// The books of a block's lanes, asked for two lanes ahead.
template <eviction_policy P>
class books_ahead {
 public:
  /// @param memory  [books_at_hand]
  __device__ __forceinline__ books_ahead(ledger_view<P> const& ledger,
                                         index_t layer,
                                         lane_schedule const& schedule,
                                         step_books* memory)
      : ledger_(ledger), schedule_(schedule), memory_(memory), layer_(layer) {}

  /// Asks for the books of a lane, the block's n-th. All threads call it.
  __device__ __forceinline__ void request(index_t number, index_t n) {
    constexpr int row_words = sizeof(row_books) / 4;
    constexpr int words = row_words + sizeof(lane_books) / 4;
    static_assert(offsetof(step_books, lane) == sizeof(row_books));
    int const word = static_cast<int>(threadIdx.x);
    if (word >= words || number >= schedule_.lanes) return;
    lane_number const of = schedule_.lane(number);
    void const* const from =
        word < row_words
            ? static_cast<void const*>(reinterpret_cast<int const*>(ledger_.rows + of.row) + word)
            : reinterpret_cast<int const*>(ledger_.lanes + ledger_.lane(of.row, layer_, of.head)) +
                  (word - row_words);
    copy_4_async(shared_address(memory_ + n % books_at_hand) + static_cast<unsigned>(4 * word),
                 from);
  }
  /// Waits for what this thread asked for; after the block's next barrier all see it.
  __device__ __forceinline__ void arrive() const { wait_for_async_copies(); }
  __device__ __forceinline__ step_books const& of(index_t n) const {
    return memory_[n % books_at_hand];
  }

 private:
  ledger_view<P> const& ledger_;
  lane_schedule const& schedule_;
  step_books* memory_;
  index_t layer_;
};

}  // namespace adore::gpu::detail
