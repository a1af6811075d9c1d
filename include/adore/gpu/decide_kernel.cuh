// SPDX-License-Identifier: Apache-2.0
// The kernel that decides on lanes, in one launch or in parts, and what it is told of the step.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// What a decision needs to know of the step, all device memory.
struct decide_args {
  /// [layer, row, kv_head, j, slot] probabilities of the j-th new token, reduced over query heads,
  /// as `attend_async` writes them for one layer; `ledger.stride` floats per (layer, row, kv_head,
  /// j), at a multiple of 16 bytes. Scope model: all layers; otherwise only the layer decided on.
  /// Unused by policies that do not observe.
  float const* weights = nullptr;
  /// [layer, row, kv_head, j] as `measure_keys_async` writes them for one layer, for policies that
  /// score keys.
  float const* key_norms = nullptr;
  /// [row] of the new tokens, how many stay, 0..count; nullptr: all. Who knows it after the last
  /// layer only keeps the weights of all layers until then, also in scopes layer and kv_head.
  index_t const* accepted = nullptr;
  /// Scope model: the step is over with this decision, `advance_async` is not called. Of stages one
  /// by one `release_async` does it.
  bool advances = false;
  /// Reads the ledger's rows and the lanes decided on while the kernel before it in the stream
  /// still runs; that one must not write to them, and lets others begin (`attend_async` of lanes
  /// that it does not decide on), as `attend_args::overlaps` has it. Without effect on
  /// `select_async` and `release_async`.
  bool overlaps = false;
};

namespace detail {

/// In scope kv_head lanes of up to so many slots are decided by a warp each, which waits for no
/// other; else each by a block of up to so many threads, or by several such blocks.
inline constexpr index_t most_slots_of_warp = 512;
inline constexpr int most_decide_threads = 512;
inline constexpr int one_warp_threads = 128;  // of a block of such warps

/// What the ledger holds of the first slots that a thread looks at, asked for together with the
/// books: a round trip to memory less.
template <int Neighbours, class P>
class first_slots {
 public:
  using slot_state = slot_state_of<P>;
  static constexpr bool has_state = !std::is_empty_v<slot_state>;

  __device__ __forceinline__ first_slots(ledger_view<P> const& ledger,
                                         index_t lane,
                                         lane_share const& share)
      : ledger_(ledger),
        lane_(lane),
        first_(share.first + Neighbours * share.thread()),
        second_(first_ + Neighbours * share.threads()) {
    if (first_ < ledger.slots) ask(first_, 0);
    if (second_ < ledger.slots) ask(second_, 1);
  }

  __device__ __forceinline__ neighbours<position_t, Neighbours> positions(index_t slot) const {
    if (slot == first_) return positions_[0];
    if (slot == second_) return positions_[1];
    return positions_at(slot);
  }
  __device__ __forceinline__ neighbours<slot_state, Neighbours> states(index_t slot) const {
    if (!has_state || slot == first_) return states_[0];
    if (slot == second_) return states_[1];
    return states_at(slot);
  }

 private:
  __device__ __forceinline__ void ask(index_t slot, int i) {
    positions_[i] = positions_at(slot);
    if constexpr (has_state) states_[i] = states_at(slot);
  }
  __device__ __forceinline__ neighbours<position_t, Neighbours> positions_at(index_t slot) const {
    return neighbours_at<Neighbours>(ledger_.positions + ledger_.cell(lane_) + slot);
  }
  __device__ __forceinline__ neighbours<slot_state, Neighbours> states_at(index_t slot) const {
    neighbours<slot_state, Neighbours> states{};
    if constexpr (has_state) states = neighbours_at<Neighbours>(ledger_.states_of(lane_) + slot);
    return states;
  }

  ledger_view<P> const& ledger_;
  index_t lane_, first_, second_;
  neighbours<position_t, Neighbours> positions_[2]{};
  neighbours<slot_state, Neighbours> states_[2]{};
};

/// Blocks that a multiprocessor should have room for, to have others while one waits. It bounds
/// registers; what spills is what a lane needs that releases several tokens.
inline constexpr int one_warp_blocks = 5, decide_blocks = 2;

/// What of a decision a launch does.
enum class decision_part { all, observation, selection, release };
/// The policy learns of the step: such a launch comes first.
template <decision_part Part>
inline constexpr bool learns = Part == decision_part::all || Part == decision_part::observation;
/// Tokens leave: such a launch comes last.
template <decision_part Part>
inline constexpr bool releases = Part == decision_part::all || Part == decision_part::release;

/// One lane per cluster, or per warp. Sums run over layers, then heads, then queries, always in
/// this order.
///
/// @param victims  of all lanes, if selection and release are launches of their own
template <decision_part Part, bool OneWarp, class P>
__global__ void __launch_bounds__(OneWarp ? one_warp_threads : most_decide_threads,
                                  OneWarp ? one_warp_blocks : decide_blocks)
    decide_kernel(__grid_constant__ ledger_view<P> const ledger,
                  __grid_constant__ P const policy,
                  index_t const layer,
                  __grid_constant__ decide_args const args,
                  __grid_constant__ victims_view const victims,
                  index_t const blocks) {
  constexpr int together = OneWarp ? 4 : 2;  // slots that a thread looks at
  __shared__ decision_scratch<most_decide_threads / warp_threads> shared;
  let_next_begin();
  auto const row = static_cast<index_t>(blockIdx.y);
  auto lane_head = static_cast<index_t>(blockIdx.x);
  lane_share share{.one_warp = OneWarp};
  if constexpr (OneWarp) {
    lane_head = lane_head * warps_in_block() + warp_in_block();
    if (lane_head >= ledger.lane_heads()) return;
  } else {
    share.blocks = static_cast<unsigned>(blocks);
    share.rank = blockIdx.x % share.blocks;
    lane_head /= blocks;
    index_t const slots = (ledger.slots / blocks + together) / together * together;
    share.first = static_cast<index_t>(share.rank) * slots;
    share.end = share.first + slots;
  }
  index_t const lane = ledger.lane(row, layer, lane_head);
  first_slots<together, P> const slots(ledger, lane, share);
  step_books const books = books_at(ledger, row, lane);
  wait_for_previous();
  index_t const count = books.row.count;
  index_t const accepted = args.accepted == nullptr ? count : args.accepted[row];
  if (count == 0 || accepted == 0) {
    if (Part == decision_part::selection && share.rank == 0 && share.thread() == 0) {
      victims.counts[lane] = 0;
    }
    return;
  }
  share.first = min(share.first, books.lane.extent);
  share.end = OneWarp ? books.lane.extent : min(share.end, books.lane.extent);
  sync_lane(share);  // all have read the books before the leader writes them
  lane_sources const sources = sources_of(ledger, lane_head);
  auto const query = [&](index_t l, index_t h, index_t j) {
    return (static_cast<std::int64_t>((l * ledger.row_count + row)) * ledger.kv_heads + h) *
               ledger.max_new +
           j;
  };
  auto const positions_of = [&](index_t slot) { return slots.positions(slot); };
  auto const states_of = [&](index_t slot) { return slots.states(slot); };
  auto const weights_of = [&](index_t slot) {
    neighbours<float, together> weights{};
    for (index_t j = 0; j < accepted; ++j) {
      float const factor = query_weight_of(policy, accepted - 1 - j);
      if (factor == 0.0F) continue;
      neighbours<float, together> of_query{};
      for (index_t l = 0; l < sources.layers; ++l) {
#pragma unroll 8
        for (index_t h = sources.first_head; h < sources.end_head; ++h) {
          auto const of_head =
              neighbours_at<together>(args.weights + query(l, h, j) * ledger.stride + slot);
#pragma unroll
          for (int i = 0; i < together; ++i) of_query.of[i] += of_head.of[i];
        }
      }
#pragma unroll
      for (int i = 0; i < together; ++i) weights.of[i] += factor * of_query.of[i];
    }
    return weights;
  };
  auto const squared_norm_of = [&](index_t j) {
    float squares = 0.0F;
    for (index_t l = 0; l < sources.layers; ++l) {
      for (index_t h = sources.first_head; h < sources.end_head; ++h)
        squares += args.key_norms[query(l, h, j)];
    }
    return squares;
  };
  auto const end = [&] {
    return lane_end_of(ledger, policy, row, layer, lane_head, books, accepted, share);
  };
  if constexpr (Part == decision_part::all) {
    decide_lane<together>(ledger,
                          policy,
                          row,
                          layer,
                          lane_head,
                          books,
                          accepted,
                          share,
                          positions_of,
                          states_of,
                          weights_of,
                          squared_norm_of,
                          shared);
  } else if constexpr (Part == decision_part::observation) {
    pass_over<together, pass_over_slots::learns>(
        end(), positions_of, states_of, weights_of, squared_norm_of);
  } else if constexpr (Part == decision_part::selection) {
    select_in_lane<together>(end(), positions_of, states_of, victims, shared);
  } else {
    release_from_lane(end(), books.lane, victims, shared);
  }
  if constexpr (!OneWarp && releases<Part>) {
    if (args.advances && share.rank == 0) {
      __syncthreads();
      if (threadIdx.x == 0) ledger.rows[row].next += accepted;
    }
  }
}

}  // namespace detail
}  // namespace adore::gpu
