// SPDX-License-Identifier: Apache-2.0
// How a launch of decode attention cuts its work: lanes over blocks, slots over the blocks that
// share a lane, query rows over passes, shared memory over what a block keeps there.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/fixed_divisor.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_exchange.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/narrow_fragments.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/types.hpp"

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

inline constexpr index_t most_chunks = lane_exchange::most_chunks;  // of a lane, see `lane_cut`
inline constexpr int attend_warps_at_most = 8;
inline constexpr index_t attend_stages_at_most = 12;  // halves of tiles
/// Shares of up to so many slots have all that is fetched of the next lane at once.
inline constexpr index_t most_double_slots = 256;
/// Up to so many at least their states, if there is room beside two halves of a tile per warp;
/// others read them from global memory.
inline constexpr index_t most_fetched_slots = 4096;
/// The same of the positions of a chunk.
inline constexpr index_t most_fetched_positions = 2048;

/// Lanes whose books a block has: the present one's and those of the next two; a power of two.
inline constexpr index_t books_at_hand = 4;

struct lane_number {
  index_t row, head;
};
/// Which lanes a block attends, in which order: cluster c takes the lanes c, c + clusters, ...
struct lane_schedule {
  index_t lanes = 0;     // of this layer: rows x KV heads, heads fastest
  index_t clusters = 1;  // of this launch
  index_t kv_heads = 1;
  fixed_divisor by_heads{};

  __device__ __forceinline__ lane_number lane(index_t number) const {
    index_t const row = by_heads.quotient(number);
    return {row, number - row * kv_heads};
  }
};

/// How a launch cuts its work and uses its blocks' dynamic shared memory; offsets in bytes.
struct attend_plan {
  lane_schedule schedule{};
  index_t stages = 2;  ///< of each warp's ring: halves of tiles
  index_t rows = 1;    ///< query rows of a pass, whole queries: (query, member of the group)
  index_t group = 1;   ///< query heads of a KV head
  fixed_divisor by_rows{}, by_group{};
  index_t chunks = 1, block_chunks = 1;  ///< of a lane; of a block
  index_t blocks = 1;                    ///< that share a lane, a power of two
  bool exchanges = false;                ///< ... and are no cluster, see `lane_exchange`
  int chunk_shift = 0, block_shift = 0;  ///< base 2 logarithms of `chunks` and `blocks`
  bool keeps_logits = false;
  bool exports = false;              ///< the weights leave the kernel
  bool whole_tiles = true;           ///< the slots of a tile lie one behind the other
  bool has_positions = false;        ///< positions of a chunk are fetched, see `chunk_positions`
  bool positions_with_head = false;  ///< ... by `lane_head`
  bool has_states = false;           ///< states of a share are fetched, see `lane_head`
  bool doubled = false;              ///< ... those of the next lane before the present one is done
  index_t block_slots = 0;           ///< largest share of a block
  index_t chunk_slots = 0;           ///< largest chunk
  int resident = 1;                  ///< blocks that a multiprocessor has room for
  int arrivals = 0, parts = 0, chunk_parts = 0, chunk_peaks = 0, logits = 0, sums = 0, heads = 0,
      states = 0, positions = 0;
  int bytes = 0, states_bytes = 0, head_bytes = 0;
  int warps = 2;                            ///< of a block
  static constexpr bool one_query = false;  ///< of each lane, all rows in one pass
};

/// The same for most steps, with a new token per row and slots that lie one behind the other: what
/// is known when compiling spares instructions, which between matrix products each launch fetches
/// anew from memory.
struct one_query_plan : attend_plan {
  static constexpr bool one_query = true;
  static constexpr bool whole_tiles = true, has_positions = true;
};
/// Whether a `one_query_plan` says the same.
///
/// @param queries  of a lane
inline bool has_one_query(attend_plan const& plan, index_t queries) {
  return queries == 1 && plan.whole_tiles && plan.has_positions;
}

struct slot_range {
  index_t first, end;
};
/// Chunk number `chunk` of a lane whose first `extent` slots are in use: whole tiles.
template <class Plan>
__device__ __forceinline__ slot_range chunk_of(index_t extent, index_t chunk, Plan const& plan) {
  index_t const tiles = (extent + tile_slots - 1) / tile_slots;
  index_t const each = ((tiles + plan.chunks - 1) >> plan.chunk_shift) * tile_slots;
  index_t const first = min(extent, chunk * each);
  return {first, min(extent, first + each)};
}
/// Which of the blocks that share a lane this one is.
template <class Plan>
__device__ __forceinline__ unsigned block_rank(Plan const& plan) {
  return blockIdx.x & (static_cast<unsigned>(plan.blocks) - 1U);
}
/// A block's part of such a lane.
template <class Plan>
__device__ __forceinline__ lane_share share_of(index_t extent, Plan const& plan) {
  unsigned const rank = block_rank(plan);
  index_t const first = static_cast<index_t>(rank) * plan.block_chunks;
  return {rank,
          static_cast<unsigned>(plan.blocks),
          chunk_of(extent, first, plan).first,
          chunk_of(extent, first + plan.block_chunks - 1, plan).end};
}

template <class View>
concept has_pages = requires(View view) {
  view.page_size;
};
/// Whether the slots of every tile lie one behind the other.
template <class View>
constexpr bool has_whole_tiles(View const& view) {
  if constexpr (requires { view.slot_stride; }) {
    if (view.slot_stride != view.channels) return false;
    if constexpr (has_pages<View>) return view.page_size % tile_slots == 0;
    return true;
  } else {
    return false;  // a view of one's own that says nothing of it
  }
}

/// What a block keeps in static shared memory. A query row's softmax so far is its (maximum, sum),
/// base 2.
template <int QueryRows>
struct attend_shared {
  float2 warp_peak[attend_warps_at_most][QueryRows];  // of the present chunk
  float lse[attend_warps_at_most][QueryRows];         // each warp's own copy, base 2
  float norms[most_new_tokens];
  std::uint64_t head_arrivals[3];
  std::uint64_t position_arrivals[2];
  alignas(step_books) unsigned char books[books_at_hand * sizeof(step_books)];
  decision_scratch<attend_warps_at_most> decision;
};

/// Registers decide how many warps a multiprocessor holds: 16 with 128 each, 12 with 168, 8 with
/// 255.
template <class T, int Channels, int QueryRows>
inline constexpr int attend_warps_per_multiprocessor =
    QueryRows == narrow_rows ? (Channels > 128 ? 12 : 16)
    : Channels / 16 * (QueryRows / 8) * static_cast<int>(sizeof(T)) > 16 ? 8
                                                                         : 12;

/// How a launch cuts its work, but for the schedule.
///
/// @param most_rows     query rows of a pass
/// @param chunks        of a lane, a power of two
/// @param blocks        that share a lane, a power of two, at most `chunks`
/// @param warps         of a block
/// @param resident      blocks that a multiprocessor should hold; fewer, if rings have no room
/// @param static_bytes  of a block's shared memory
/// @param with_logits   counts room for them, also if none are kept
/// Result: `stages` is 0 if not even one block fits.
template <class P, class T, class View, class Guests>
attend_plan plan_attention(attend_args<T, View, Guests> const& args,
                           ledger_view<P> const& ledger,
                           index_t channels,
                           index_t most_rows,
                           index_t chunks,
                           index_t blocks,
                           int warps,
                           int resident,
                           int static_bytes,
                           bool with_logits = false) {
  attend_plan plan;
  plan.warps = warps;
  auto const floats = [](index_t count) { return static_cast<int>(sizeof(float)) * count; };
  plan.group = args.q.heads / ledger.kv_heads;
  index_t const all_rows = (ledger.max_new + args.rebuilt.most) * plan.group;
  plan.rows = std::min(all_rows, most_rows / plan.group * plan.group);
  plan.by_rows = fixed_divisor(plan.rows);
  plan.by_group = fixed_divisor(plan.group);
  plan.chunks = chunks;
  plan.block_chunks = chunks / blocks;
  plan.blocks = blocks;
  while ((index_t{1} << plan.chunk_shift) < chunks) ++plan.chunk_shift;
  while ((index_t{1} << plan.block_shift) < blocks) ++plan.block_shift;
  index_t const tiles = (ledger.slots + tile_slots - 1) / tile_slots;
  plan.chunk_slots = (tiles + chunks - 1) / chunks * tile_slots;
  plan.block_slots = plan.chunk_slots * plan.block_chunks;
  using state = slot_state_of<P>;
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  bool const learns = observes_attention<P> && decides;
  plan.exports = args.weights != nullptr;
  plan.keeps_logits = learns || plan.exports || with_logits;
  plan.whole_tiles = has_whole_tiles(args.keys) && has_whole_tiles(args.values);
  bool const has_use_of_states =
      decides && !std::is_empty_v<state> && plan.block_slots <= most_fetched_slots;
  // the buffers of positions hold a chunk each
  plan.positions_with_head = plan.block_chunks == 1 && plan.block_slots <= most_double_slots;
  plan.doubled = has_use_of_states && plan.positions_with_head;
  plan.states_bytes = static_cast<int>(sizeof(state)) * plan.block_slots;
  int const parts = floats(warps * plan.rows * channels);
  int const chunk_parts = chunks == 1 ? 0 : floats(plan.block_chunks * plan.rows * channels);
  int const chunk_peaks = chunks == 1 ? 0 : static_cast<int>(sizeof(float2)) * chunks * most_rows;
  int const logits = plan.keeps_logits ? floats(plan.block_slots * plan.rows) : 0;
  int const sums = learns && all_rows > plan.rows ? floats(plan.block_slots) : 0;
  int const row_bytes = channels * static_cast<int>(sizeof(T));
  plan.head_bytes = (plan.rows + 2 * ledger.max_new) * row_bytes;
  int const heads = 2 * plan.head_bytes;
  plan.has_positions = plan.chunk_slots <= most_fetched_positions;
  int const positions = plan.has_positions ? 2 * floats(plan.chunk_slots) : 0;
  int const half_bytes = tile_slots * row_bytes;
  int const stage = warps * (half_bytes + arrival_bytes);
  constexpr int of_cuda = 1024;  // what it takes of each block's shared memory
  int const others = of_cuda + static_bytes + parts + chunk_parts + chunk_peaks + logits + sums +
                     heads + positions;
  constexpr int of_multiprocessor = 228 * 1024;
  int states = plan.doubled ? 2 * plan.states_bytes : 0;
  auto const stages = [&] {
    int const room = std::min(of_multiprocessor / resident, most_block_bytes) - others - states;
    return std::max(0, room / stage);
  };
  while (resident > 1 && stages() < 2) --resident;
  plan.resident = resident;
  plan.has_states = plan.doubled;
  if (has_use_of_states && !plan.doubled) {
    states = plan.states_bytes;
    plan.has_states = stages() >= 2;
    if (!plan.has_states) states = 0;
  }
  plan.stages = std::min<index_t>(stages(), attend_stages_at_most);
  plan.arrivals = plan.stages * warps * half_bytes;
  plan.parts = (plan.arrivals + warps * plan.stages * arrival_bytes + 15) / 16 * 16;
  plan.chunk_parts = plan.parts + parts;
  plan.chunk_peaks = plan.chunk_parts + chunk_parts;
  plan.logits = plan.chunk_peaks + chunk_peaks;
  plan.sums = plan.logits + logits;
  plan.heads = (plan.sums + sums + 15) / 16 * 16;
  plan.states = plan.heads + heads;
  plan.positions = plan.states + states;
  plan.bytes = plan.positions + positions;
  plan.schedule.lanes = ledger.attended_lanes();
  plan.schedule.kv_heads = ledger.kv_heads;
  plan.schedule.by_heads = fixed_divisor(ledger.kv_heads);
  return plan;
}

/// As many blocks as run at once, or fewer if each then takes as many lanes as the busiest would.
inline index_t evenly(index_t lanes, index_t at_once) {
  index_t const rounds = (lanes + at_once - 1) / at_once;
  return (lanes + rounds - 1) / rounds;
}

}  // namespace adore::gpu::detail
