// SPDX-License-Identifier: Apache-2.0
// The attention of one lane by one block, or by the blocks of a cluster that share its slots.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_head.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tile_ring.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/rebuild/schedule.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

/// Whether the policy lets a query see a key that is in the lane and not newer.
template <class P, class T, class View, class Guests>
__device__ bool sees_key(P const& policy,
                         position_t key,
                         position_t query,
                         index_t query_head,
                         attend_args<T, View, Guests> const& args) {
  static_assert(std::is_empty_v<slot_state_of<P>>,
                "adore::gpu: a policy that hides keys by their state runs on the host only");
  return policy.sees(slot_view{query, query},
                     {},
                     slot_view{key, key},
                     {},
                     head_view{args.layer, query_head, args.q.heads});
}

/// Brings the rows of a tile that are not in the store up to date: a new token's K and V come from
/// the step's tensors, and go into the store; values of nobody become zeros, since what lies there
/// may be NaN.
///
/// @param tile      K [slot, channel], then V
/// @param wrong     bit r: row r is a new token's or nobody's
/// @param position  of slot lane_in_warp() % 16, `no_position` if nobody sees it
/// @param first     slot of row 0
/// @param stores    whether new tokens are still to be stored
template <class T, int Channels, class View, class Guests>
__device__ __forceinline__ void patch_tile(shared_pointer tile,
                                           unsigned wrong,
                                           position_t position,
                                           position_t next,
                                           index_t first,
                                           index_t row,
                                           index_t head,
                                           lane_head<T, Channels> const& fresh,
                                           attend_args<T, View, Guests> const& args,
                                           bool stores) {
  constexpr int row_bytes = row_cut<T, Channels>::bytes;
  constexpr int vectors = row_bytes / 16;
#pragma unroll 1
  for (; wrong != 0; wrong &= wrong - 1) {
    int const r = __ffs(static_cast<int>(wrong)) - 1;
    position_t const p = __shfl_sync(whole_warp, position, r);
#pragma unroll 1
    for (int i = lane_in_warp(); i < 2 * vectors; i += warp_threads) {
      bool const is_value = i >= vectors;
      auto const at = static_cast<unsigned>(16 * (is_value ? i - vectors : i));
      uint4 x{0, 0, 0, 0};
      if (p >= 0) {
        x = load_shared_16((is_value ? fresh.value(p - next) : fresh.key(p - next)) + at);
        if (stores) {
          T* const to =
              is_value ? args.values(row, head, first + r) : args.keys(row, head, first + r);
          *reinterpret_cast<uint4*>(reinterpret_cast<char*>(to) + at) = x;
        }
      }
      store_shared_16(
          tile + static_cast<unsigned>(((is_value ? tile_slots : 0) + r) * row_bytes) + at, x);
    }
  }
  fence_before_copy();
  __syncwarp();
}

/// Which lane, and what the ledger says of it.
struct lane_of_step {
  index_t row, head, lane;
  index_t token;    // the row's first in the step's tensors
  index_t rebuilt;  // queries beside those of the new tokens
  step_books books;
  lane_share share;

  __device__ index_t count() const { return books.row.count; }
  __device__ index_t queries() const { return count() + rebuilt; }
  __device__ position_t next() const { return books.row.next; }
  __device__ index_t tiles() const {
    return (share.end - share.first + tile_slots - 1) / tile_slots;
  }
};

/// Up to `QueryTiles` x 8 query rows of a lane: a pass over its K and V. Each warp attends every
/// n-th tile relative to its own running maximum; then the warps are merged, then the blocks.
template <class T, int Channels, int QueryTiles, class P, class View, class Guests>
class lane_attention {
 public:
  using ring_type = tile_ring<T, Channels, P, View>;

  __device__ __forceinline__ lane_attention(attend_args<T, View, Guests> const& args,
                                            ledger_view<P> const& ledger,
                                            P const& policy,
                                            attend_plan const& plan,
                                            unsigned char* dynamic,
                                            attend_shared& shared)
      : args_(args),
        ledger_(ledger),
        policy_(policy),
        plan_(plan),
        shared_(shared),
        parts_(reinterpret_cast<float*>(dynamic + plan.parts)),
        logits_(reinterpret_cast<float*>(dynamic + plan.logits)),
        sums_(reinterpret_cast<float*>(dynamic + plan.sums)) {}

  __device__ __forceinline__ index_t passes(lane_of_step const& of) const {
    return (of.queries() * plan_.group + plan_.rows - 1) / plan_.rows;
  }
  __device__ __forceinline__ index_t rows(lane_of_step const& of, index_t pass) const {
    return min(plan_.rows, of.queries() * plan_.group - pass * plan_.rows);
  }
  /// Number of query j in the step's tensors.
  __device__ __forceinline__ index_t token_of(lane_of_step const& of, index_t j) const {
    if constexpr (Guests::has_guests) {
      if (j >= of.count()) {
        return args_.rebuilt.tokens[of.row * args_.rebuilt.most + j - of.count()];
      }
    }
    return of.token + j;
  }
  /// The last position that query j may see.
  __device__ __forceinline__ position_t last_seen_by(lane_of_step const& of, index_t j) const {
    if constexpr (Guests::has_guests) {
      if (j >= of.count() && j < of.queries()) {
        if (args_.rebuilt.mask == rebuild_mask::row_causal) return of.next() - 1;
        if (args_.rebuilt.mask == rebuild_mask::none) return of.next() + of.count() - 1;
        return args_.rebuilt.positions[of.row * args_.rebuilt.most + j - of.count()];
      }
    }
    return of.next() + j;
  }
  /// Under row_causal: whether position p is of a row that is computed behind query j's.
  __device__ bool is_row_behind(lane_of_step const& of, index_t j, position_t p) const
      requires(Guests::has_guests) {
    if (j < of.count() || j >= of.queries()) return false;
    position_t const* const all = args_.rebuilt.positions + of.row * args_.rebuilt.most;
    if (p <= all[j - of.count()]) return false;
    for (index_t i = 0; i < of.rebuilt; ++i) {
      if (all[i] == p) return true;
    }
    return false;
  }

  /// The warps' own shares: their outputs and (maximum, sum) go to shared memory.
  __device__ __forceinline__ void attend(lane_of_step const& of,
                                         index_t pass,
                                         lane_head<T, Channels> const& fetched,
                                         ring_type& ring) {
    int const warp = warp_in_block();
    int const g = lane_in_warp() / 4;
    int const t = lane_in_warp() % 4;
    index_t const warps = warps_in_block();
    index_t const count = of.count();
    position_t const next = of.next();
    lane_share const& share = of.share;
    index_t const tiles = of.tiles();
    index_t const rows = this->rows(of, pass);
    float const scale = args_.scale * 1.4426950408889634F;
    bool by_row = false;  // some queries see what depends on more than its position
    if constexpr (Guests::has_guests) {
      by_row = of.rebuilt > 0 && args_.rebuilt.mask == rebuild_mask::row_causal;
    }
    query_tile<T, Channels> queries[QueryTiles];
    output_tile<T, Channels> outputs[QueryTiles];
    float peak[QueryTiles][2];       // running maximum of query rows 2t and 2t + 1, equal in all g
    float sum[QueryTiles][2];        // of this thread's own slots
    position_t sees[QueryTiles][2];  // the last position that those query rows see
#pragma unroll
    for (int n = 0; n < QueryTiles; ++n) {
      index_t const own = tile_queries * n + g;
      index_t const r = pass * plan_.rows + own;
      if (pass == 0) {
        queries[n].load(fetched.query(own), own < rows, t);
      } else {
        queries[n].load(own < rows ? reinterpret_cast<char const*>(
                                         args_.q(token_of(of, r / plan_.group),
                                                 of.head * plan_.group + r % plan_.group))
                                   : nullptr,
                        t);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        peak[n][e] = keep_never;
        sum[n][e] = 0.0F;
        sees[n][e] =
            last_seen_by(of, (pass * plan_.rows + tile_queries * n + 2 * t + e) / plan_.group);
      }
    }

    for (index_t tile = warp; tile < tiles; tile += warps) {
      shared_pointer const staged = ring.take();
      index_t const own_slot = tile * tile_slots + lane_in_warp() % tile_slots;
      position_t own =
          share.first + own_slot < share.end ? fetched.position(own_slot) : no_position;
      if constexpr (Guests::has_guests) own = position_in_slot(own);
      if (own >= next + count) own = no_position;  // nobody sees it
      // bits of rows that are not kept tokens' (the upper half repeats the lower)
      unsigned const wrong = __ballot_sync(whole_warp, own < 0 || own >= next) & 0xFFFFU;
      if (wrong != 0) {
        patch_tile<T, Channels>(staged,
                                wrong,
                                own,
                                next,
                                share.first + tile * tile_slots,
                                of.row,
                                of.head,
                                fetched,
                                args_,
                                pass == 0);
      }
      float scores[QueryTiles][4] = {};
      multiply_keys<T, Channels, QueryTiles>(scores, staged, queries, g, t);
      position_t const at[2] = {__shfl_sync(whole_warp, own, g),
                                __shfl_sync(whole_warp, own, g + 8)};
      bool higher = false;
#pragma unroll
      for (int n = 0; n < QueryTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          position_t const p = at[i / 2];
          bool visible = p >= 0 && p <= sees[n][i % 2];
          if constexpr (Guests::has_guests) {
            if (by_row) {
              index_t const r = pass * plan_.rows + tile_queries * n + 2 * t + i % 2;
              visible = visible && !is_row_behind(of, r / plan_.group, p);
            }
          }
          if constexpr (masks_attention<P>) {
            index_t const r = pass * plan_.rows + tile_queries * n + 2 * t + i % 2;
            visible =
                visible &&
                sees_key(
                    policy_, p, sees[n][i % 2], of.head * plan_.group + r % plan_.group, args_);
          }
          scores[n][i] = visible ? scores[n][i] * scale : keep_never;
        }
        if (plan_.keeps_logits) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            index_t const r = tile_queries * n + 2 * t + i % 2;
            index_t const slot = tile * tile_slots + g + 8 * (i / 2);
            if (r < rows) logits_[slot * plan_.rows + r] = scores[n][i];
          }
        }
        higher = higher || fmaxf(scores[n][0], scores[n][2]) > peak[n][0] ||
                 fmaxf(scores[n][1], scores[n][3]) > peak[n][1];
      }
      if (__any_sync(whole_warp, higher)) {  // rare after the first tiles
#pragma unroll
        for (int n = 0; n < QueryTiles; ++n) {
          float factor[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float highest = fmaxf(fmaxf(scores[n][e], scores[n][2 + e]), peak[n][e]);
#pragma unroll
            for (int width = 4; width < warp_threads; width *= 2) {
              highest = fmaxf(highest, __shfl_xor_sync(whole_warp, highest, width));
            }
            factor[e] = highest == keep_never ? 1.0F : exp2_fast(peak[n][e] - highest);
            peak[n][e] = highest;
            sum[n][e] *= factor[e];
          }
          outputs[n].scale(factor[0], factor[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < QueryTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float const highest = peak[n][i % 2];
          scores[n][i] = highest == keep_never ? 0.0F : exp2_fast(scores[n][i] - highest);
          sum[n][i % 2] += scores[n][i];
        }
      }
      {
        probability_tile<T> probabilities[QueryTiles];
#pragma unroll
        for (int n = 0; n < QueryTiles; ++n) probabilities[n].set(scores[n]);
        multiply_values<T, Channels, QueryTiles>(
            outputs, staged + ring_type::tile_bytes, probabilities, g, t);
        ring.give();
      }
    }

#pragma unroll
    for (int n = 0; n < QueryTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = sum[n][e];
#pragma unroll
        for (int step = 4; step < warp_threads; step *= 2) {
          total += __shfl_xor_sync(whole_warp, total, step);
        }
        index_t const r = tile_queries * n + 2 * t + e;
        if (r >= rows) continue;
        if (g == 0) shared_.warp_peak[warp][r] = {peak[n][e], total};
        float* const part = parts_ + (warp * plan_.rows + r) * Channels;
#pragma unroll
        for (int i = 0; i < row_cut<T, Channels>::tiles; ++i) {
          index_t const c = output_tile<T, Channels>::first_channel(g, i);
          *reinterpret_cast<float2*>(part + c) = {outputs[n].sums[i][e], outputs[n].sums[i][2 + e]};
        }
      }
    }
    __syncthreads();
  }

  /// Merges the warps, then the blocks, writes output and log-sum-exp; `lse` is then in shared
  /// memory.
  __device__ __forceinline__ void merge(lane_of_step const& of, index_t pass) {
    index_t const warps = warps_in_block();
    auto const threads = static_cast<index_t>(blockDim.x);
    lane_share const& share = of.share;
    index_t const rows = this->rows(of, pass);
    auto const write = [&](index_t r, index_t c, float2 x) {
      index_t const at = pass * plan_.rows + r;
      T* const to =
          args_.out(token_of(of, at / plan_.group), of.head * plan_.group + at % plan_.group) + c;
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<unsigned*>(to) = matrix_unit<T>::pack(x.x, x.y);
      } else {
        *reinterpret_cast<float2*>(to) = x;
      }
    };
    constexpr index_t pairs = Channels / 2;
    for (index_t i = static_cast<index_t>(threadIdx.x); i < rows * pairs; i += threads) {
      index_t const r = i / pairs;
      index_t const c = i % pairs * 2;
      float highest = keep_never;
      for (index_t w = 0; w < warps; ++w) highest = fmaxf(highest, shared_.warp_peak[w][r].x);
      float total = 0.0F;
      float2 x{0.0F, 0.0F};
      for (index_t w = 0; w < warps; ++w) {
        float2 const peak_of = shared_.warp_peak[w][r];
        float const factor = peak_of.x == keep_never ? 0.0F : exp2_fast(peak_of.x - highest);
        float2 const part =
            *reinterpret_cast<float2*>(parts_ + (w * plan_.rows + r) * Channels + c);
        total += factor * peak_of.y;
        x.x += factor * part.x;
        x.y += factor * part.y;
      }
      if (share.blocks == 1) {
        write(r, c, {x.x / total, x.y / total});
        if (c == 0) shared_.lse[r] = highest + log2f(total);
      } else {
        *reinterpret_cast<float2*>(parts_ + r * Channels + c) = x;
        if (c == 0) shared_.peak[r] = {highest, total};
      }
    }
    if (share.blocks > 1) {
      sync_cluster();
      if (static_cast<index_t>(threadIdx.x) < rows) {
        float highest = keep_never;
        for (unsigned b = 0; b < share.blocks; ++b) {
          highest = fmaxf(highest, shared_of(&shared_.peak[threadIdx.x], b)->x);
        }
        float total = 0.0F;
        for (unsigned b = 0; b < share.blocks; ++b) {
          float2 const theirs = *shared_of(&shared_.peak[threadIdx.x], b);
          if (theirs.x != keep_never) total += exp2_fast(theirs.x - highest) * theirs.y;
        }
        shared_.lse[threadIdx.x] = highest + log2f(total);
      }
      __syncthreads();
      for (index_t i = static_cast<index_t>(threadIdx.x + share.rank * blockDim.x);
           i < rows * pairs;
           i += static_cast<index_t>(share.blocks * blockDim.x)) {
        index_t const r = i / pairs;
        index_t const c = i % pairs * 2;
        float2 x{0.0F, 0.0F};
        for (unsigned b = 0; b < share.blocks; ++b) {
          float const peak_of = shared_of(&shared_.peak[r], b)->x;
          if (peak_of == keep_never) continue;
          float const factor = exp2_fast(peak_of - shared_.lse[r]);
          float2 const theirs = *reinterpret_cast<float2*>(shared_of(parts_ + r * Channels + c, b));
          x.x += factor * theirs.x;
          x.y += factor * theirs.y;
        }
        write(r, c, x);
      }
    } else {
      __syncthreads();
    }
    if (args_.lse != nullptr && share.rank == 0 && static_cast<index_t>(threadIdx.x) < rows) {
      index_t const at = pass * plan_.rows + static_cast<index_t>(threadIdx.x);
      args_.lse[static_cast<std::int64_t>(token_of(of, at / plan_.group)) * args_.q.heads +
                of.head * plan_.group + at % plan_.group] =
          shared_.lse[threadIdx.x] * 0.6931471805599453F;
    }
    __syncthreads();
  }

  /// Exports the pass's weights, and adds them up where there are several passes.
  __device__ __forceinline__ void use_weights(lane_of_step const& of, index_t pass, bool decides) {
    auto const threads = static_cast<index_t>(blockDim.x);
    lane_share const& share = of.share;
    index_t const first_query = pass * plan_.rows / plan_.group;
    // those of new tokens
    index_t const queries_here = min(rows(of, pass) / plan_.group, of.count() - first_query);
    if (args_.weights != nullptr) {
      // the last block also clears what lies behind the slots in use
      index_t const end = share.rank + 1 == share.blocks ? ledger_.slots : share.end;
      for (index_t j = 0; j < queries_here; ++j) {
        float* const to =
            args_.weights +
            (static_cast<std::int64_t>(of.row * ledger_.kv_heads + of.head) * ledger_.max_new +
             first_query + j) *
                ledger_.stride;
        for (index_t s = share.first + static_cast<index_t>(threadIdx.x); s < end; s += threads) {
          to[s] = s < share.end ? weight_of_query(s - share.first, j) : 0.0F;
        }
      }
    }
    if constexpr (observes_attention<P>) {
      if (decides && passes(of) > 1) {
        for (index_t s = static_cast<index_t>(threadIdx.x); s < share.end - share.first;
             s += threads) {
          float const before = pass == 0 ? 0.0F : sums_[s];
          sums_[s] = before + weight_of_pass(of, s, first_query, queries_here);
        }
      }
    }
  }

  /// The lane's step ends: see `decide_lane`.
  __device__ __forceinline__ void decide(lane_of_step const& of,
                                         lane_head<T, Channels> const& fetched) {
    index_t const first = of.share.first;
    bool const several = passes(of) > 1;
    decide_lane(
        ledger_,
        policy_,
        of.row,
        args_.layer,
        of.head,
        of.books,
        of.count(),
        of.share,
        [&](index_t slot) { return fetched.position(slot - first); },
        [&](index_t slot) {
          return several ? sums_[slot - first] : weight_of_pass(of, slot - first, 0, of.count());
        },
        [&](index_t j) { return shared_.norms[j]; },
        shared_.decision);
  }

  /// Squared norms of the new keys, for policies that score keys.
  __device__ __forceinline__ void measure_keys(lane_of_step const& of) {
    for (index_t j = warp_in_block(); j < of.count(); j += warps_in_block()) {
      T const* const key = args_.k(of.token + j, of.head);
      float squares = 0.0F;
      for (index_t c = lane_in_warp(); c < Channels; c += warp_threads) {
        auto const x = static_cast<float>(key[c]);
        squares += x * x;
      }
      for (int width = 1; width < warp_threads; width *= 2) {
        squares += __shfl_xor_sync(whole_warp, squares, width);
      }
      if (lane_in_warp() != 0) continue;
      shared_.norms[j] = squares;
      if (of.share.rank == 0 && args_.key_norms != nullptr) {
        args_.key_norms[(of.row * ledger_.kv_heads + of.head) * ledger_.max_new + j] = squares;
      }
    }
  }

 private:
  /// The probability of a slot under query j of the pass, reduced over the query heads.
  __device__ __forceinline__ float weight_of_query(index_t s, index_t j) const {
    float weight = 0.0F;
    for (index_t member = 0; member < plan_.group; ++member) {
      index_t const r = j * plan_.group + member;
      float const p = exp2_fast(logits_[s * plan_.rows + r] - shared_.lse[r]);
      weight = args_.reduction == gqa_reduction::max ? fmaxf(weight, p) : weight + p;
    }
    return args_.reduction == gqa_reduction::mean ? weight / static_cast<float>(plan_.group)
                                                  : weight;
  }
  __device__ __forceinline__ float weight_of_pass(lane_of_step const& of,
                                                  index_t s,
                                                  index_t first_query,
                                                  index_t queries_here) const {
    float weight = 0.0F;
    for (index_t j = 0; j < queries_here; ++j) {
      float const factor = query_weight_of(policy_, of.count() - 1 - first_query - j);
      if (factor != 0.0F) weight += factor * weight_of_query(s, j);
    }
    return weight;
  }

  attend_args<T, View, Guests> const& args_;
  ledger_view<P> const& ledger_;
  P const& policy_;
  attend_plan const& plan_;
  attend_shared& shared_;
  float* parts_;   // [warp, row, channel]
  float* logits_;  // [slot, row]
  float* sums_;    // [slot], where there are several passes
};

}  // namespace adore::gpu::detail
