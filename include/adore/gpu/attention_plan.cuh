// SPDX-License-Identifier: Apache-2.0
// How a launch of decode attention cuts its work: lanes over blocks, slots over the blocks of a
// cluster, query rows over passes, shared memory over what a block keeps there.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace adore::gpu::detail {

/// A lane is split over blocks by its slots alone, so that the bits of a row do not depend on the
/// batch around it.
inline constexpr index_t slots_per_block = 1024;
inline constexpr unsigned most_blocks_per_lane = 16;  // cluster size that an H100 takes
inline constexpr int attend_warps_at_most = 4;
inline constexpr index_t attend_stages_at_most = 6;

/// Which lanes a block attends, in which order: cluster c takes the lanes c, c + clusters, ...
struct lane_schedule {
  index_t lanes;     // of this layer: rows x KV heads, heads fastest
  index_t clusters;  // of this launch
};

/// How a launch cuts its work and uses its blocks' dynamic shared memory; offsets in bytes.
struct attend_plan {
  lane_schedule schedule{};
  index_t stages = 2;  ///< of each warp's ring
  index_t rows = 1;    ///< query rows of a pass: (j, member of the group), at most 8 * tiles
  index_t group = 1;   ///< query heads of a KV head
  bool keeps_logits = false;
  bool whole_tiles = true;    ///< the slots of a tile lie one behind the other
  index_t block_slots = 0;    ///< largest share of a block
  int resident = 1;           ///< blocks that a multiprocessor has room for
  unsigned head_buffers = 2;  ///< two let the next lane's head come early, see `lane_head`
  int arrivals = 0, parts = 0, logits = 0, sums = 0, heads = 0, bytes = 0;
};

/// A block's part of a lane whose first `extent` slots are in use: whole tiles.
__device__ __forceinline__ lane_share share_of(index_t extent, unsigned rank, unsigned blocks) {
  index_t const tiles = (extent + tile_slots - 1) / tile_slots;
  auto const shares = static_cast<index_t>(blocks);
  index_t const each = (tiles + shares - 1) / shares * tile_slots;
  index_t const first = min(extent, static_cast<index_t>(rank) * each);
  return {rank, blocks, first, min(extent, first + each)};
}

template <class View>
concept has_pages = requires(View view) {
  view.page_size;
};
/// Whether the slots of every tile lie one behind the other.
template <class View>
constexpr bool has_whole_tiles(View const& view) {
  if (view.slot_stride != view.channels) return false;
  if constexpr (has_pages<View>) return view.page_size % tile_slots == 0;
  return true;
}

/// What a block keeps in static shared memory.
struct attend_shared {
  float2 warp_peak[attend_warps_at_most]
                  [2 * tile_queries];  // (maximum, sum) of a query row, base 2
  float2 peak[2 * tile_queries];       // the block's
  float lse[2 * tile_queries];         // the lane's, base 2
  float norms[most_new_tokens];
  std::uint64_t head_arrivals[2];
  decision_scratch decision;
};

/// Registers decide how many warps a multiprocessor holds: 12 with 168 each, 8 with 255.
template <class T, int Channels, int QueryTiles>
inline constexpr int attend_warps_per_multiprocessor =
    row_cut<T, Channels>::tiles* QueryTiles* static_cast<int>(sizeof(T)) > 16 ? 8 : 12;

/// How a launch cuts its work, but for the schedule.
///
/// @param block_slots  largest share of a block
/// @param warps        of a block
/// @param resident     blocks that a multiprocessor should hold; fewer, if rings have no room
/// @throws std::invalid_argument if not even one block fits
template <class P, class T, class View, class Guests>
attend_plan plan_attention(attend_args<T, View, Guests> const& args,
                           ledger_view<P> const& ledger,
                           index_t channels,
                           index_t query_tiles,
                           index_t block_slots,
                           int warps,
                           int resident) {
  attend_plan plan;
  plan.group = args.q.heads / ledger.kv_heads;
  index_t const all_rows = (ledger.max_new + args.rebuilt.most) * plan.group;
  plan.rows = std::min(all_rows, query_tiles * tile_queries / plan.group * plan.group);
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  bool const learns = observes_attention<P> && decides;
  plan.keeps_logits = learns || args.weights != nullptr;
  plan.whole_tiles = has_whole_tiles(args.keys) && has_whole_tiles(args.values);
  auto const floats = [](index_t count) { return static_cast<int>(sizeof(float)) * count; };
  int const parts = floats(warps * plan.rows * channels);
  int const logits = plan.keeps_logits ? floats(block_slots * plan.rows) : 0;
  int const sums = learns && all_rows > plan.rows ? floats(block_slots) : 0;
  plan.head_buffers = block_slots > 256 ? 1 : 2;  // larger ones would cost warps
  int const row_bytes = channels * static_cast<int>(sizeof(T));
  int const heads = static_cast<int>(plan.head_buffers) *
                    (floats(block_slots) + (plan.rows + 2 * ledger.max_new) * row_bytes);
  int const stage_bytes = 2 * tile_slots * row_bytes;
  int const stage = warps * (stage_bytes + arrival_bytes);
  int const others = parts + logits + sums + heads;
  constexpr int of_block = 1024 + static_cast<int>(sizeof(attend_shared));  // 1 KB is CUDA's own
  constexpr int of_multiprocessor = 228 * 1024;
  auto const stages_with = [&](int n) {
    return (std::min(of_multiprocessor / n, 227 * 1024) - of_block - others) / stage;
  };
  while (resident > 1 && stages_with(resident) < 2) --resident;
  plan.block_slots = block_slots;
  plan.resident = resident;
  plan.stages = std::min(stages_with(resident), attend_stages_at_most);
  if (plan.stages < 1) {
    throw std::invalid_argument(
        "adore: attend_async: " + std::to_string(ledger.slots) + " slots with " +
        std::to_string(plan.rows) + " query rows at once need " + std::to_string(others) +
        " bytes of shared memory for the policy's weights, more than a block has; use fewer slots, "
        "or a policy that does not observe attention");
  }
  plan.arrivals = plan.stages * warps * stage_bytes;
  plan.parts = (plan.arrivals + warps * plan.stages * arrival_bytes + 15) / 16 * 16;
  plan.logits = plan.parts + parts;
  plan.sums = plan.logits + logits;
  plan.heads = (plan.sums + sums + 15) / 16 * 16;
  plan.bytes = plan.heads + heads;
  return plan;
}

/// As many blocks as run at once, or fewer if each then takes as many lanes as the busiest would.
inline index_t evenly(index_t lanes, index_t at_once) {
  index_t const rounds = (lanes + at_once - 1) / at_once;
  return (lanes + rounds - 1) / rounds;
}
inline int multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace adore::gpu::detail
