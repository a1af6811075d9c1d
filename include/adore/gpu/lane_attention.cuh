// SPDX-License-Identifier: Apache-2.0
// The attention of one lane by one block, or by the blocks that share its slots.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/chunk_positions.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_head.cuh"
#include "adore/gpu/lane_mask.cuh"
#include "adore/gpu/lane_rows.cuh"
#include "adore/gpu/lane_softmax.cuh"
#include "adore/gpu/lane_weights.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/narrow_fragments.cuh"
#include "adore/gpu/tile_patch.cuh"
#include "adore/gpu/tile_ring.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/rebuild/schedule.hpp"

#include <type_traits>

namespace adore::gpu::detail {

/// Up to `QueryRows` (4, 8 or 16) query rows of a lane: a pass over its K and V. Each warp attends
/// every n-th tile of a chunk relative to what its scores began with; then the warps are merged,
/// then the chunks. In a lane of one chunk and one pass threads meet once for the former and once
/// after the decision.
template <class T, int Channels, int QueryRows, class P, class View, class Guests, class Plan>
class lane_attention {
 public:
  using ring_type = tile_ring<T, Channels, P, View, Plan>;
  using head_type = lane_head<T, Channels, P, Plan>;
  static constexpr bool narrow = QueryRows == narrow_rows;
  static constexpr int tiles = narrow ? 1 : QueryRows / tile_queries;
  using queries_type =
      std::conditional_t<narrow, narrow_queries<T, Channels>, query_tile<T, Channels>>;
  using output_type =
      std::conditional_t<narrow, narrow_output<T, Channels>, output_tile<T, Channels>>;
  using probability_type = std::conditional_t<narrow, narrow_probabilities<T>, probability_tile<T>>;

  __device__ __forceinline__ lane_attention(attend_args<T, View, Guests> const& args,
                                            ledger_view<P> const& ledger,
                                            P const& policy,
                                            Plan const& plan,
                                            unsigned char* dynamic,
                                            attend_shared<QueryRows>& shared)
      : args_(args),
        ledger_(ledger),
        policy_(policy),
        plan_(plan),
        rows_(args, plan),
        softmax_(args, plan, dynamic, shared),
        weights_(args, ledger, policy, plan, dynamic, shared) {}

  /// A chunk, each warp its own tiles: their outputs and (maximum, sum) go to shared memory.
  ///
  /// @param chunk  of the lane, one of this block's
  __device__ __forceinline__ void attend(lane_of_step const& of,
                                         index_t pass,
                                         index_t chunk,
                                         head_type const& fetched,
                                         chunk_positions<P, Plan> const& positions,
                                         ring_type& ring) {
    int const warp = warp_in_block();
    int const g = lane_in_warp() / 4;
    int const t = lane_in_warp() % 4;
    // the rows of the pass that this thread has scores of
    auto const row_of = [&](int n, int e) {
      return static_cast<index_t>(narrow ? 2 * (t % 2) + e : tile_queries * n + 2 * t + e);
    };
    bool const is_copy = narrow && t >= 2;  // ... and another one as well
    index_t const warps = warps_in_block();
    index_t const count = of.count();
    position_t const next = of.next();
    slot_range const slots = chunk_of(of.books.lane.extent, chunk, plan_);
    index_t const rows = rows_.rows(of, pass);
    float const scale = args_.scale * 1.4426950408889634F;
    bool by_row = false;  // some queries see what depends on more than its position
    if constexpr (Guests::has_guests) {
      by_row = of.rebuilt > 0 && args_.rebuilt.mask == rebuild_mask::row_causal;
    }
    queries_type queries[tiles];
    output_type outputs[tiles];
    // of this thread's two query rows of a tile, equal in all g: what exponentials are relative to,
    // which is no more than `slack` below the highest score so far
    float base[tiles][2];
    float limit[tiles][2];         // base + slack
    float sum[tiles][2];           // of this thread's own slots
    position_t sees[tiles][2];     // the last position that those query rows see
    constexpr float slack = 8.0F;  // a base that follows each new maximum would be work for nothing
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      index_t const own = narrow ? g % narrow_rows : tile_queries * n + g;
      index_t const r = pass * plan_.rows + own;
      if (pass == 0) {
        queries[n].load(fetched.query(own), own < rows, t);
      } else {
        queries[n].load(own < rows
                            ? reinterpret_cast<char const*>(args_.q(
                                  rows_.token_of(of, rows_.query_of(r)), rows_.head_of(of, r)))
                            : nullptr,
                        t);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        base[n][e] = 0.0F;
        limit[n][e] = keep_never;
        sum[n][e] = 0.0F;
        sees[n][e] = rows_.last_seen_by(of, rows_.query_of(pass * plan_.rows + row_of(n, e)));
      }
    }

    auto const position_in_tile = [&](index_t first) {
      index_t const s = first + lane_in_warp() % tile_slots;
      if (s >= slots.end) return no_position;
      position_t p = positions.at(s - slots.first);
      if constexpr (Guests::has_guests) p = position_in_slot(p);
      return p < next + count ? p : no_position;  // later ones are seen by nobody
    };
    position_t own = position_in_tile(slots.first + warp * tile_slots);
#pragma unroll 1
    for (index_t first = slots.first + warp * tile_slots; first < slots.end;
         first += warps * tile_slots) {
      // asked for a tile ahead
      position_t const following = position_in_tile(first + warps * tile_slots);
      bool const all_kept = __all_sync(whole_warp, own >= 0 && own < next);
      shared_pointer const keys = ring.take();
      if (!all_kept) {
        append_to_half<T, Channels>(
            keys,
            own,
            next,
            [&](index_t j) { return fetched.key(j); },
            [&](index_t r) {
              return pass == 0 ? args_.keys(of.row, of.head, first + r) : nullptr;
            });
      }
      float scores[tiles][4] = {};
      multiply_keys(scores, keys, queries, g, t);
      ring.give();
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] *= scale;
      }
      if (masks_attention<P> || Guests::has_guests || !all_kept) {
        position_t const at[2] = {__shfl_sync(whole_warp, own, g),
                                  __shfl_sync(whole_warp, own, g + 8)};
#pragma unroll
        for (int n = 0; n < tiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            position_t const p = at[i / 2];
            bool visible = p >= 0 && p <= sees[n][i % 2];
            if constexpr (Guests::has_guests) {
              if (by_row) {
                index_t const r = pass * plan_.rows + row_of(n, i % 2);
                visible = visible && !rows_.is_row_behind(of, rows_.query_of(r), p);
              }
            }
            if constexpr (masks_attention<P>) {
              index_t const r = pass * plan_.rows + row_of(n, i % 2);
              visible = visible && sees_key(policy_,
                                            ledger_,
                                            of.lane,
                                            next,
                                            first + g + 8 * (i / 2),
                                            p,
                                            sees[n][i % 2],
                                            {args_.layer, rows_.head_of(of, r), args_.q.heads});
            }
            if (!visible) scores[n][i] = keep_never;
          }
        }
      }
      bool higher = false;
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
        if (plan_.keeps_logits) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            index_t const r = row_of(n, e);
            if (r >= rows || is_copy) continue;
            float* const to = weights_.logits(r) + (first - of.share.first + g);
            to[0] = scores[n][e];
            to[8] = scores[n][2 + e];
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          higher = higher || fmaxf(scores[n][e], scores[n][2 + e]) > limit[n][e];
        }
      }
      if (__any_sync(whole_warp, higher)) {  // rare after the first tile
#pragma unroll
        for (int n = 0; n < tiles; ++n) {
          float factor[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float highest = fmaxf(scores[n][e], scores[n][2 + e]);
#pragma unroll
            for (int width = 4; width < warp_threads; width *= 2) {
              highest = fmaxf(highest, __shfl_xor_sync(whole_warp, highest, width));
            }
            factor[e] = 1.0F;
            if (highest > limit[n][e]) {
              // nothing was added before the first, and 0 x infinity would be NaN
              factor[e] = limit[n][e] == keep_never ? 1.0F : exp2_fast(base[n][e] - highest);
              base[n][e] = highest;
              limit[n][e] = highest + slack;
              sum[n][e] *= factor[e];
            }
          }
          outputs[n].scale(factor[0], factor[1]);
        }
      }
      probability_type probabilities[tiles];
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[n][i] = exp2_fast(scores[n][i] - base[n][i % 2]);
          sum[n][i % 2] += scores[n][i];
        }
        probabilities[n].set(scores[n]);
      }
      shared_pointer const values = ring.take();
      if (!all_kept) {
        clear_values<T, Channels>(values, own);
        append_to_half<T, Channels>(
            values,
            own,
            next,
            [&](index_t j) { return fetched.value(j); },
            [&](index_t r) {
              return pass == 0 ? args_.values(of.row, of.head, first + r) : nullptr;
            });
      }
      multiply_values(outputs, values, probabilities, g, t);
      ring.give();
      own = following;
    }

#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = sum[n][e];
#pragma unroll
        for (int step = 4; step < warp_threads; step *= 2) {
          total += __shfl_xor_sync(whole_warp, total, step);
        }
        index_t const r = row_of(n, e);
        if (r >= rows) continue;
        // nobody seen: the base says nothing
        if (g == 0 && !is_copy) {
          softmax_.set_peak(r, limit[n][e] == keep_never ? keep_never : base[n][e], total);
        }
        outputs[n].store(softmax_.part(r), e, g, t);
      }
    }
  }

  __device__ __forceinline__ lane_rows<T, View, Guests, Plan> const& rows() const {
    return rows_;
  }
  __device__ __forceinline__ lane_softmax<T, Channels, QueryRows, View, Guests, Plan>& softmax() {
    return softmax_;
  }
  __device__ __forceinline__ lane_weights<QueryRows, P, T, View, Guests, Plan>& weights() {
    return weights_;
  }

 private:
  attend_args<T, View, Guests> const& args_;
  ledger_view<P> const& ledger_;
  P const& policy_;
  Plan const& plan_;
  lane_rows<T, View, Guests, Plan> rows_;
  lane_softmax<T, Channels, QueryRows, View, Guests, Plan> softmax_;
  lane_weights<QueryRows, P, T, View, Guests, Plan> weights_;
};

}  // namespace adore::gpu::detail
