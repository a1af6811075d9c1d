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

/// A warp's ring. The order of tiles is its first, its next, ..., as often as there are passes,
/// lane after lane; who consumes them keeps to the same order. A stage holds K [slot, channel],
/// then V.
template <class T, int Channels, class P, class View>
class tile_ring {
 public:
  static constexpr int row_bytes = row_cut<T, Channels>::bytes;
  static constexpr int tile_bytes = tile_slots * row_bytes;
  static constexpr int stage_bytes = 2 * tile_bytes;

  /// What all rings of a launch have in common; it stays where the kernel's arguments are.
  struct source {
    ledger_view<P> const& ledger;
    View const& keys;
    View const& values;
    index_t layer;
    index_t const* rebuilt;  // [row] queries beside those of new tokens; nullptr: none
    attend_plan const& plan;
  };

  /// @param memory    [warp, stage]
  /// @param arrivals  [warp, stage]
  __device__ __forceinline__
  tile_ring(source const& from, index_t first_lane, shared_pointer memory, shared_pointer arrivals)
      : from_(from),
        memory_(memory + static_cast<unsigned>(warp_in_block() * from.plan.stages * stage_bytes)),
        arrivals_(arrivals +
                  static_cast<unsigned>(warp_in_block() * from.plan.stages * arrival_bytes)),
        hint_(read_once_hint()),
        number_(first_lane) {
    if (lane_in_warp() == 0) {
      for (index_t s = 0; s < from_.plan.stages; ++s) init_arrival(arrival_of(s));
      publish_arrivals();
    }
    __syncwarp();
    look_ahead(first_lane);
    enter();
    for (index_t s = 0; s < from_.plan.stages; ++s) request(s);
  }

  /// The oldest requested tile, once it is there.
  __device__ __forceinline__ shared_pointer take() {
    wait_for(arrival_of(stage_), parity_);
    return memory_of(stage_);
  }
  /// All threads have read the tile: its place is filled anew.
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
    return memory_ + static_cast<unsigned>(stage * stage_bytes);
  }
  __device__ __forceinline__ shared_pointer arrival_of(index_t stage) const {
    return arrivals_ + static_cast<unsigned>(stage * arrival_bytes);
  }
  __device__ __forceinline__ index_t row() const { return number_ / from_.ledger.kv_heads; }
  __device__ __forceinline__ index_t head() const { return number_ % from_.ledger.kv_heads; }

  /// Asks for the books of a lane, which arrive while another is being streamed.
  __device__ __forceinline__ void look_ahead(index_t number) {
    if (number >= from_.plan.schedule.lanes) return;
    index_t const in_row = number / from_.ledger.kv_heads;
    coming_queries_ = from_.ledger.rows[in_row].count;
    if (from_.rebuilt != nullptr && coming_queries_ > 0) coming_queries_ += from_.rebuilt[in_row];
    coming_extent_ =
        from_.ledger.lanes[from_.ledger.lane(in_row, from_.layer, number % from_.ledger.kv_heads)]
            .extent;
  }
  /// Goes to lane `number_`, or the next one that has tiles for this warp.
  __device__ __forceinline__ void enter() {
    for (; number_ < from_.plan.schedule.lanes; number_ += from_.plan.schedule.clusters) {
      lane_share const share = share_of(coming_extent_, cluster_rank(), cluster_blocks());
      passes_left_ = (coming_queries_ * from_.plan.group + from_.plan.rows - 1) / from_.plan.rows;
      look_ahead(number_ + from_.plan.schedule.clusters);
      first_ = share.first + warp_in_block() * tile_slots;
      end_ = share.end;
      if (passes_left_ > 0 && first_ < end_) {
        begin_pass();
        return;
      }
    }
  }
  __device__ __forceinline__ void begin_pass() {
    slot_ = first_;
    look_up();
  }
  __device__ __forceinline__ void look_up() {
    if (!from_.plan.whole_tiles) return;
    key_ = reinterpret_cast<char const*>(from_.keys(row(), head(), slot_));
    value_ = reinterpret_cast<char const*>(from_.values(row(), head(), slot_));
  }

  __device__ __forceinline__ void request(index_t stage) {
    if (number_ >= from_.plan.schedule.lanes) return;
    index_t const rows = min(tile_slots, end_ - slot_);
    shared_pointer const to = memory_of(stage);
    shared_pointer const bar = arrival_of(stage);
    auto const bytes = static_cast<unsigned>(rows * row_bytes);
    if (lane_in_warp() == 0) {
      expect_bytes(bar, 2 * bytes);
      if (from_.plan.whole_tiles) {
        copy_bulk(to, key_, bytes, bar, hint_);
        copy_bulk(to + tile_bytes, value_, bytes, bar, hint_);
      }
    }
    if (!from_.plan.whole_tiles) request_rows(to, bar, rows);
    index_t const further = warps_in_block() * tile_slots;
    slot_ += further;
    if (slot_ < end_) {
      if constexpr (has_pages<View>) {
        look_up();
      } else {
        key_ += further * row_bytes;
        value_ += further * row_bytes;
      }
    } else if (--passes_left_ > 0) {
      begin_pass();
    } else {
      number_ += from_.plan.schedule.clusters;
      enter();
    }
  }
  /// Row by row, where slots do not lie one behind the other.
  __device__ __forceinline__ void request_rows(shared_pointer to,
                                               shared_pointer bar,
                                               index_t rows) {
    __syncwarp();
    if (lane_in_warp() >= rows) return;
    index_t const slot = slot_ + lane_in_warp();
    shared_pointer const place = to + static_cast<unsigned>(lane_in_warp() * row_bytes);
    copy_bulk(place, from_.keys(row(), head(), slot), row_bytes, bar, hint_);
    copy_bulk(place + tile_bytes, from_.values(row(), head(), slot), row_bytes, bar, hint_);
  }

  source const from_;
  shared_pointer memory_, arrivals_;
  std::uint64_t hint_;
  char const* key_ = nullptr;  // of slot_, if tiles are whole
  char const* value_ = nullptr;
  index_t number_, slot_ = 0, first_ = 0, end_ = 0, passes_left_ = 0;
  index_t coming_queries_ = 0, coming_extent_ = 0;
  index_t stage_ = 0;
  unsigned parity_ = 0;
};

}  // namespace adore::gpu::detail
