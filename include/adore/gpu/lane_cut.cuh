// SPDX-License-Identifier: Apache-2.0
// How decode attention cuts a lane: into chunks and warps by its shape and policy alone, so that
// the bits of a row do not depend on the batch around it; and over how many blocks, which changes
// no bit.
#pragma once

#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/narrow_fragments.cuh"
#include "adore/types.hpp"

#include <algorithm>

namespace adore::gpu::detail {

inline constexpr index_t most_slots_of_chunk = 1024;

/// Chunks are merged in their order. More of them occupy the chip with fewer lanes, but each is
/// merged: a lane of a large batch should have few. More warps in a block share what is done once
/// per lane, such as its logits; but short lanes have few tiles for each, and what a warp does for
/// 16 rows at the end of a lane takes long: other blocks should read meanwhile.
struct lane_cut {
  index_t chunks = 1;  // a power of two
  int warps = 2;       // of a block, an even number; `plan_launch` has others where room is scarce
};

/// @param most_warps  of a multiprocessor
/// @param lanes       as in `attend_args::cut_for_lanes`
/// Source: on an H100, of 4 to 64 chunks the fastest for 1 to 8 lanes of 1024 to 32,768 slots.
inline lane_cut lane_cut_of(index_t slots, index_t query_rows, int most_warps, index_t lanes) {
  int const warps = attend_warps_at_most;
  bool const many_rows = query_rows > tile_queries;  // their chunks are dearer to merge
  int const fewer = many_rows ? 4 : warps;
  index_t const finest = lane_exchange::most_chunks_of(slots);
  auto const at_most = [&](index_t few) { return lanes > 0 && lanes <= few; };
  if (slots > 8192) {
    if (at_most(4)) return {at_most(1) ? finest : finest / 2, warps};
    return {16, fewer};
  }
  if (slots > 4096) {
    if (at_most(4) && !many_rows) return {at_most(2) ? finest : finest / 2, warps};
    return {8, warps};
  }
  if (slots > most_slots_of_chunk) {
    if (at_most(4) && !many_rows) return {finest, warps};
    return {at_most(8) ? 8 : 4, warps};
  }
  if (slots > most_double_slots) {
    if (at_most(4) && !many_rows && slots > 512) return {8, warps};
    if (at_most(32)) return {4, fewer};
    if (!many_rows) return {1, slots < 512 && most_warps >= 12 ? 6 : warps};
  }
  if (many_rows) return {1, at_most(128) ? warps : at_most(256) ? 4 : 2};
  return {1, at_most(256) ? most_warps / 2 : 2};
}

/// Chooses how many blocks share a lane, and how they meet. A block alone needs to wait for no
/// other: lanes are shared only to occupy the multiprocessors, nine of ten at least, or to have
/// room for rings. If that would not do either, blocks have fewer warps. For 16 rows and one chunk
/// they have more than `cut` says where such blocks would not fill a multiprocessor; room for
/// weights is counted whether or not they are kept, so that bits do not depend on it.
///
/// @param processors    of the chip
/// @param static_bytes  of a block's shared memory
template <class P, class T, class View, class Guests>
attend_plan plan_launch(attend_args<T, View, Guests> const& args,
                        ledger_view<P> const& ledger,
                        index_t channels,
                        index_t query_rows,
                        int most_warps,
                        lane_cut cut,
                        index_t processors,
                        int static_bytes) {
  index_t const lanes = ledger.attended_lanes();
  // Blocks that share lanes and take more than half of the chip, or are more than a cluster may
  // have, meet in device memory, if the ledger has some. A cluster lies in one part of the chip:
  // fewer find a place than there is room for their blocks, and some multiprocessors get two of
  // these while others have none.
  auto const has_exchange = [&] {
    return ledger.exchange != nullptr &&
           lane_exchange::floats(cut.chunks, channels) <= ledger.exchange_floats;
  };
  auto const exchanges = [&](index_t blocks) {
    return blocks > 1 && (blocks > most_cluster_blocks || 2 * lanes * blocks > processors) &&
           has_exchange();
  };
  index_t const row_bytes = channels * static_cast<index_t>(sizeof(T));
  // a warp takes as long for a short row as for a long one, so that it takes two blocks of them to
  // keep the memory busy
  index_t const occupied = (row_bytes <= 128 ? 18 : 9) * processors;  // in tenths of blocks
  auto const planned = [&](index_t blocks) {
    // No more blocks on a multiprocessor than it takes to hold all lanes: these get longer rings.
    // But where clusters are many, or one fills a part of the chip, they find some multiprocessors
    // taken, so that two of their blocks should fit on one.
    index_t const all = (lanes * blocks + processors - 1) / processors;
    bool const is_cluster = blocks > 1 && !exchanges(blocks);
    bool const by_pairs = is_cluster && (blocks > 8 || 2 * lanes * blocks > processors);
    int const wanted = std::max(by_pairs ? 2 : 1, static_cast<int>(all));
    attend_plan plan = plan_attention(args,
                                      ledger,
                                      channels,
                                      query_rows,
                                      cut.chunks,
                                      blocks,
                                      cut.warps,
                                      std::min(most_warps / cut.warps, wanted),
                                      static_bytes);
    plan.exchanges = exchanges(blocks);
    return plan;
  };
  auto const fill_multiprocessor = [&](int warps) {
    int const blocks = attend_warps_at_most / warps;
    return plan_attention(args,
                          ledger,
                          channels,
                          query_rows,
                          cut.chunks,
                          /*blocks=*/1,
                          warps,
                          /*resident=*/blocks,
                          static_bytes,
                          /*with_logits=*/true)
               .resident == blocks;
  };
  if (query_rows > tile_queries && cut.chunks == 1) {
    while (cut.warps < attend_warps_at_most && !fill_multiprocessor(cut.warps)) cut.warps *= 2;
  }
  // where each chunk has a block to itself, which no batch changes
  index_t stages = planned(cut.chunks).stages;
  auto const try_again = [&] { stages = planned(cut.chunks).stages; };
  if (stages < 2 && cut.warps > 4) {
    cut.warps = 4;
    try_again();
  }
  if (stages < 1) {
    cut.warps = 2;
    try_again();
  }
  for (; stages < 1 && cut.chunks < most_chunks; try_again()) cut.chunks *= 2;
  attend_plan plan = planned(1);
  index_t const most_blocks =
      std::min<index_t>(cut.chunks, has_exchange() ? processors : most_cluster_blocks);
  while (2 * plan.blocks <= most_blocks &&
         (10 * lanes * plan.blocks < occupied || plan.stages < 2)) {
    plan = planned(2 * plan.blocks);
  }
  // Sixteen blocks of a cluster would wait for a whole part of the chip; if there is room for
  // rings, eight do.
  if (!plan.exchanges && plan.blocks > 8 && plan.resident == 1) {
    attend_plan const smaller = planned(8);
    if (smaller.stages >= 2) return smaller;
  }
  return plan;
}

}  // namespace adore::gpu::detail
