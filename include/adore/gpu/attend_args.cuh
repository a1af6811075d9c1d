// SPDX-License-Identifier: Apache-2.0
// What one layer's decode attention is given, and which shapes it takes.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/kv_view.hpp"
#include "adore/rebuild/schedule.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace adore::gpu {

/// Released tokens that are computed again in a step: queries whose K and V are in their slots
/// already, see `device_rebuild`. All device memory.
struct rebuilt_queries {
  static constexpr bool has_guests = true;
  index_t const* counts = nullptr;        // [row]; nullptr: there are none
  index_t const* tokens = nullptr;        // [row, most] number in the step's tensors
  position_t const* positions = nullptr;  // [row, most]
  index_t most = 0;                       // of a row
  rebuild_mask mask = rebuild_mask::position_causal;
};

/// No guests: nobody comes back, and lanes hold tokens only. Costs nothing.
struct no_guests {
  static constexpr bool has_guests = false;
  static constexpr index_t most = 0;
};

/// One layer's attention of a step. Tokens are padded: number row * max_new + j, j < count.
///
/// @tparam T     float, __half or __nv_bfloat16
/// @tparam View  of K and V by slot: `kv_view<T>`, `paged_view<T>`
/// @tparam Guests  `rebuilt_queries` if lanes may hold guests, see `guest_mark`
template <class T, class View, class Guests = no_guests>
struct attend_args {
  token_view<T const> q;     // [token, head, channel]
  token_view<T const> k, v;  // [token, kv_head, channel], of the step's new tokens
  View keys, values;         // [row, kv_head, slot, channel], of this layer
  token_view<T> out;         // [token, head, channel]
  float* lse = nullptr;      // [token, head] natural log of the sum of exponentials; or nullptr
  /// [row, kv_head, j, slot] probabilities of the j-th new token, reduced over the query heads of
  /// the KV head, `ledger.stride` floats per (row, kv_head, j); slots without a visible token get
  /// 0. At a multiple of 16 bytes. nullptr: they do not leave the kernel. They take shared memory,
  /// so that a lane may be cut otherwise where there is little, and last bits change.
  float* weights = nullptr;
  /// [row, kv_head, j] squared norms of the new keys, see `measure_keys_async`; nullptr: where the
  /// policy scores keys, those of `k` as it is.
  float const* key_norms = nullptr;
  index_t layer = 0;
  float scale = 0.0F;  ///< of q.k; 0: 1 / sqrt(channels)
  gqa_reduction reduction = gqa_reduction::sum;
  /// Scope kv_head: decide in this launch that all new tokens stay. Otherwise nothing changes in
  /// the ledger, and `decide_async` follows.
  bool decides = true;
  /// Begins to read this layer's K, V and lanes while the kernel before it in the stream still
  /// runs; that one must not write to them, nor to the ledger's rows or `rebuilt.counts`, and lets
  /// others begin (`rotate_async`, and `attend_async` and `decide_async` of another layer do). If
  /// that one overlaps, too, the one before it may still run: the same holds for it, and so on, and
  /// each must have waited for its predecessor before it ends.
  bool overlaps = false;
  /// How many lanes of a layer (rows x KV heads) the chip should be occupied with; 0: many. Lanes
  /// are cut the finer the fewer they are, so that bits depend on this number, and on no other
  /// lane: set it for a cache once and for all, such as to that of all its lanes.
  index_t cut_for_lanes = 0;
  Guests rebuilt{};
};

inline constexpr index_t most_rebuilt = 32;  ///< of one row in one step, on the device

namespace detail {

template <class P, class T, class View, class Guests>
void check_attention(attend_args<T, View, Guests> const& args,
                     ledger_view<P> const& ledger,
                     index_t channels) {
  // sentences are made when they are needed: this runs at each launch
  auto const refuse = [](std::string const& what) {
    throw std::logic_error("adore: attend_async: " + what);
  };
  if (ledger.kv_heads < 1) refuse("the ledger has no KV heads");
  auto const require_channels = [&](char const* what, index_t have) {
    if (have == channels) return;
    refuse(std::string(what) + " has " + std::to_string(have) +
           " channels per head, the template argument says " + std::to_string(channels));
  };
  require_channels("q", args.q.channels);
  require_channels("k", args.k.channels);
  require_channels("v", args.v.channels);
  require_channels("keys", args.keys.channels);
  require_channels("values", args.values.channels);
  require_channels("out", args.out.channels);
  if (args.k.heads != ledger.kv_heads || args.v.heads != ledger.kv_heads) {
    refuse("k and v must have the ledger's " + std::to_string(ledger.kv_heads) + " KV heads");
  }
  require_fits("attend_async", "keys", args.keys, ledger.row_count, ledger.kv_heads, ledger.slots);
  require_fits(
      "attend_async", "values", args.values, ledger.row_count, ledger.kv_heads, ledger.slots);
  check_rows(args.keys, "keys");
  check_rows(args.values, "values");
  check_tokens(args.q, "q");
  check_tokens(args.k, "k");
  check_tokens(args.v, "v");
  check_tokens(args.out, "out");
  index_t const group = args.q.heads / ledger.kv_heads;
  if (group * ledger.kv_heads != args.q.heads || group < 1 || group > 2 * tile_queries) {
    refuse(std::to_string(args.q.heads) + " query heads: must be 1 to 16 times the " +
           std::to_string(ledger.kv_heads) + " KV heads");
  }
  if (args.out.heads != args.q.heads) {
    refuse("out has " + std::to_string(args.out.heads) + " heads, q has " +
           std::to_string(args.q.heads));
  }
  if (args.q.head_stride != channels) {
    refuse("the query heads of a token must lie one behind the other");
  }
  if (!is_aligned(args.weights, 16)) refuse("weights must lie at a multiple of 16 bytes");
  index_t const tokens = ledger.row_count * ledger.max_new;
  if (args.rebuilt.most > most_rebuilt) {
    refuse(std::to_string(args.rebuilt.most) + " rebuilt tokens per row: at most " +
           std::to_string(most_rebuilt));
  }
  if (args.q.tokens < tokens || args.k.tokens < tokens || args.v.tokens < tokens ||
      args.out.tokens < tokens) {
    refuse("q, k, v and out must have room for " + std::to_string(tokens) +
           " tokens, max_new for each row");
  }
  if (ledger.max_new > most_new_tokens) {
    refuse("max_new = " + std::to_string(ledger.max_new) + ": at most " +
           std::to_string(most_new_tokens));
  }
  if (args.layer < 0 || args.layer >= ledger.layers) {
    refuse("layer " + std::to_string(args.layer) + " of " + std::to_string(ledger.layers));
  }
}

}  // namespace detail
}  // namespace adore::gpu
