// SPDX-License-Identifier: Apache-2.0
// K and V of the lanes that a block attends, streamed into shared memory in tiles of 16 slots, each
// warp through a ring of its own that runs ahead across lanes: what happens between two lanes never
// drains the memory pipe.
#pragma once

#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// A warp's ring. A tile comes in two halves, K then V, so that a place is filled anew while the
/// other half is being worked on. The order of tiles is the warp's first, its next, ... of each
/// chunk, as often as there are passes, lane after lane; who consumes them keeps to the same order.
template <class T, int Channels, class P, class View, class Plan>
class tile_ring {
 public:
  static constexpr int row_bytes = row_cut<T, Channels>::bytes;
  static constexpr int half_bytes = tile_slots * row_bytes;  // K or V

  /// What all rings of a launch have in common; it stays where the kernel's arguments are.
  struct source {
    ledger_view<P> const& ledger;
    View const& keys;
    View const& values;
    index_t layer;
    index_t const* rebuilt;  // [row] queries beside those of new tokens; nullptr: none
    Plan const& plan;
  };

  /// @param memory    [warp, stage] `half_bytes` each
  /// @param arrivals  [warp, stage]
  __device__ __forceinline__
  tile_ring(source const& from, index_t first_lane, shared_pointer memory, shared_pointer arrivals)
      : from_(from),
        warp_(warp_agreed()),
        memory_(memory + static_cast<unsigned>(warp_ * from.plan.stages * half_bytes)),
        arrivals_(arrivals + static_cast<unsigned>(warp_ * from.plan.stages * arrival_bytes)),
        hint_(read_once_hint()),
        number_(first_lane) {
    if (lane_in_warp() == 0) {
      for (index_t s = 0; s < from_.plan.stages; ++s) init_arrival(arrival_of(s));
      publish_arrivals();
    }
    __syncwarp();
    look_ahead(first_lane);
    enter();
#pragma unroll 1
    for (index_t s = 0; s < from_.plan.stages; ++s) request(s);
  }

  /// The oldest requested half, once it is there.
  __device__ __forceinline__ shared_pointer take() {
    wait_for(arrival_of(stage_), parity_);
    return memory_of(stage_);
  }
  /// All threads have read the half: its place is filled anew.
  __device__ __forceinline__ void give() {
    __syncwarp();
    request(stage_);
    if (++stage_ == from_.plan.stages) {
      stage_ = 0;
      parity_ ^= 1U;
    }
  }

 private:
  __device__ __forceinline__ shared_pointer memory_of(index_t stage) const {
    return memory_ + static_cast<unsigned>(stage * half_bytes);
  }
  __device__ __forceinline__ shared_pointer arrival_of(index_t stage) const {
    return arrivals_ + static_cast<unsigned>(stage * arrival_bytes);
  }
  /// Asks for the books of a lane, which arrive while another is being streamed.
  __device__ __forceinline__ void look_ahead(index_t number) {
    if (number >= from_.plan.schedule.lanes) return;
    lane_number const coming = from_.plan.schedule.lane(number);
    coming_queries_ = from_.ledger.rows[coming.row].count;
    if (from_.rebuilt != nullptr && coming_queries_ > 0) {
      coming_queries_ += from_.rebuilt[coming.row];
    }
    coming_extent_ =
        from_.ledger.lanes[from_.ledger.lane(coming.row, from_.layer, coming.head)].extent;
  }
  /// Goes to lane `number_`, or the next one that has tiles for this warp.
  __device__ __forceinline__ void enter() {
#pragma unroll 1
    for (; number_ < from_.plan.schedule.lanes; number_ += from_.plan.schedule.clusters) {
      extent_ = __shfl_sync(whole_warp, coming_extent_, 0);
      index_t const queries = __shfl_sync(whole_warp, coming_queries_, 0);
      passes_left_ =
          Plan::one_query
              ? queries
              : from_.plan.by_rows.quotient(queries * from_.plan.group + from_.plan.rows - 1);
      look_ahead(number_ + from_.plan.schedule.clusters);
      if (passes_left_ > 0 && begin_pass()) return;
    }
  }
  __device__ __forceinline__ bool begin_pass() {
    chunk_ = static_cast<index_t>(block_rank(from_.plan)) * from_.plan.block_chunks;
    return begin_chunk();
  }
  /// Goes to chunk `chunk_` of this block, or the next one that has tiles for this warp.
  __device__ __forceinline__ bool begin_chunk() {
    index_t const behind =
        static_cast<index_t>(block_rank(from_.plan) + 1) * from_.plan.block_chunks;
#pragma unroll 1
    for (; chunk_ < behind; ++chunk_) {
      slot_range const chunk = chunk_of(extent_, chunk_, from_.plan);
      slot_ = chunk.first + warp_ * tile_slots;
      end_ = chunk.end;
      if (slot_ < end_) {
        look_up();
        return true;
      }
    }
    return false;
  }
  __device__ __forceinline__ void look_up() {
    if (!from_.plan.whole_tiles) return;
    lane_number const at = from_.plan.schedule.lane(number_);
    key_ = reinterpret_cast<char const*>(from_.keys(at.row, at.head, slot_));
    value_ = reinterpret_cast<char const*>(from_.values(at.row, at.head, slot_));
  }

  __device__ __forceinline__ void request(index_t stage) {
    if (number_ >= from_.plan.schedule.lanes) return;
    index_t const rows = min(tile_slots, end_ - slot_);
    shared_pointer const to = memory_of(stage);
    shared_pointer const bar = arrival_of(stage);
    if (from_.plan.whole_tiles) {
      if (lane_in_warp() == 0) {
        auto const bytes = static_cast<unsigned>(rows * row_bytes);
        expect_bytes(bar, bytes);
        copy_bulk(to, is_value_ ? value_ : key_, bytes, bar, hint_);
      }
    } else {
      request_rows(to, bar, rows);
    }
    is_value_ = !is_value_;
    if (is_value_) return;  // the values of the same tile come next
    index_t const further = warps_in_block() * tile_slots;
    slot_ += further;
    if (slot_ < end_) {
      if constexpr (has_pages<View>) {
        look_up();
      } else {
        key_ += further * row_bytes;
        value_ += further * row_bytes;
      }
      return;
    }
    ++chunk_;
    if (begin_chunk() || (--passes_left_ > 0 && begin_pass())) return;
    number_ += from_.plan.schedule.clusters;
    enter();
  }
  /// Row by row, where slots do not lie one behind the other.
  __device__ __forceinline__ void request_rows(shared_pointer to,
                                               shared_pointer bar,
                                               index_t rows) {
    if (lane_in_warp() == 0) expect_bytes(bar, static_cast<unsigned>(rows * row_bytes));
    __syncwarp();
    if (lane_in_warp() >= rows) return;
    lane_number const at = from_.plan.schedule.lane(number_);
    index_t const slot = slot_ + lane_in_warp();
    void const* const from =
        is_value_ ? from_.values(at.row, at.head, slot) : from_.keys(at.row, at.head, slot);
    copy_bulk(to + static_cast<unsigned>(lane_in_warp() * row_bytes), from, row_bytes, bar, hint_);
  }

  source const from_;
  int warp_;
  shared_pointer memory_, arrivals_;
  std::uint64_t hint_;
  char const* key_ = nullptr;  // of slot_, if tiles are whole
  char const* value_ = nullptr;
  index_t number_, chunk_ = 0, slot_ = 0, end_ = 0, extent_ = 0, passes_left_ = 0;
  index_t coming_queries_ = 0, coming_extent_ = 0;
  index_t stage_ = 0;
  unsigned parity_ = 0;
  bool is_value_ = false;
};

}  // namespace adore::gpu::detail
