// SPDX-License-Identifier: Apache-2.0
// Decode attention in one launch per layer: appends the new K and V, attends, lets the policy
// observe, releases its victims and reserves the next slots.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tile_ring.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/kv_view.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace adore::gpu {

/// One layer's attention of a step. Tokens are padded: number row * max_new + j, j < count.
///
/// @tparam T     float, __half or __nv_bfloat16
/// @tparam View  of K and V by slot: `kv_view<T>`, `paged_view<T>`
template <class T, class View>
struct attend_args {
  token_view<T const> q;     // [token, head, channel]
  token_view<T const> k, v;  // [token, kv_head, channel], of the step's new tokens
  View keys, values;         // [row, kv_head, slot, channel], of this layer
  token_view<T> out;         // [token, head, channel]
  float* lse = nullptr;      // [token, head] natural log of the sum of exponentials; or nullptr
  /// [row, kv_head, j, slot] probabilities of the j-th new token, reduced over the query heads of
  /// the KV head, `ledger.stride` floats per (row, kv_head, j); slots without a visible token get
  /// 0. nullptr: they do not leave the kernel.
  float* weights = nullptr;
  float* key_norms = nullptr;  // [row, kv_head, j] squared norm of the new key; or nullptr
  index_t layer = 0;
  float scale = 0.0F;  ///< of q.k; 0: 1 / sqrt(channels)
  gqa_reduction reduction = gqa_reduction::sum;
  /// Scope kv_head: decide in this launch that all new tokens stay. Otherwise nothing changes in
  /// the ledger, and `decide_async` follows.
  bool decides = true;
};

namespace detail {

/// A lane is split over blocks by its slots alone, so that the bits of a row do not depend on the
/// batch around it. 1024 slots keep one block busy for 20 us.
inline constexpr index_t slots_per_block = 1024;
inline constexpr unsigned most_blocks_per_lane = 16;  // cluster size that an H100 takes

/// Whether the policy lets a query see a key that is in the lane and not newer.
template <class P, class T, class View>
__device__ bool sees_key(P const& policy,
                         position_t key,
                         position_t query,
                         index_t query_head,
                         attend_args<T, View> const& args) {
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
template <class T, int Channels, class View>
__device__ __forceinline__ void patch_tile(shared_pointer tile,
                                           unsigned wrong,
                                           position_t position,
                                           position_t next,
                                           index_t first,
                                           index_t row,
                                           index_t head,
                                           index_t token,
                                           attend_args<T, View> const& args,
                                           bool stores) {
  constexpr int row_bytes = row_cut<T, Channels>::bytes;
  constexpr int vectors = row_bytes / 16;
#pragma unroll 1
  for (; wrong != 0; wrong &= wrong - 1) {
    int const r = __ffs(static_cast<int>(wrong)) - 1;
    position_t const p = __shfl_sync(whole_warp, position, r);
    index_t const from = token + (p < 0 ? 0 : p - next);
#pragma unroll 1
    for (int i = lane_in_warp(); i < 2 * vectors; i += warp_threads) {
      bool const is_value = i >= vectors;
      int const c = is_value ? i - vectors : i;
      uint4 x{0, 0, 0, 0};
      if (p >= 0) {
        x = reinterpret_cast<uint4 const*>(is_value ? args.v(from, head) : args.k(from, head))[c];
        if (stores) {
          T* const to =
              is_value ? args.values(row, head, first + r) : args.keys(row, head, first + r);
          reinterpret_cast<uint4*>(to)[c] = x;
        }
      }
      store_shared_16(tile + static_cast<unsigned>((is_value ? tile_slots : 0) * row_bytes +
                                                   r * row_bytes + 16 * c),
                      x);
    }
  }
  fence_before_copy();
  __syncwarp();
}

struct attend_shared {
  float2 warp_peak[attend_warps_at_most]
                  [2 * tile_queries];  // (maximum, sum) of a query row, base 2
  float2 peak[2 * tile_queries];       // the block's
  float lse[2 * tile_queries];         // the lane's, base 2
  float norms[most_new_tokens];
  std::uint64_t position_arrivals[2];
  decision_scratch decision;
};

/// Registers decide how many warps a multiprocessor holds: 12 with 168 each, 8 with 255.
template <class T, int Channels, int QueryTiles>
inline constexpr int attend_warps_per_multiprocessor =
    row_cut<T, Channels>::tiles* QueryTiles* static_cast<int>(sizeof(T)) > 16 ? 8 : 12;

/// Lanes of one layer, one after the other; `QueryTiles` x 8 query rows at once.
template <class T, int Channels, int QueryTiles, class P, class View>
__global__ void __launch_bounds__(
    attend_warps_per_multiprocessor<T, Channels, QueryTiles>* warp_threads, 1)
    attend_kernel(__grid_constant__ attend_args<T, View> const args,
                  __grid_constant__ ledger_view<P> const ledger,
                  __grid_constant__ P const policy,
                  __grid_constant__ attend_plan const plan) {
  using ring_type = tile_ring<T, Channels, P, View>;
  extern __shared__ __align__(128) unsigned char dynamic[];
  __shared__ attend_shared shared;
  int const warp = warp_in_block();
  int const g = lane_in_warp() / 4;
  int const t = lane_in_warp() % 4;
  unsigned const rank = cluster_rank();
  unsigned const blocks = cluster_blocks();
  float* const parts = reinterpret_cast<float*>(dynamic + plan.parts);    // [warp, row, channel]
  float* const logits = reinterpret_cast<float*>(dynamic + plan.logits);  // [slot, row]
  float* const sums = reinterpret_cast<float*>(dynamic + plan.sums);      // [slot], several passes
  auto const first_lane = static_cast<index_t>(blockIdx.x / blocks);
  ring_type ring({ledger, args.keys, args.values, args.layer, plan},
                 first_lane,
                 shared_address(dynamic),
                 shared_address(dynamic) + static_cast<unsigned>(plan.arrivals));
  position_buffer lane_positions(shared_address(dynamic) + static_cast<unsigned>(plan.positions),
                                 shared_address(shared.position_arrivals),
                                 plan.block_slots,
                                 plan.position_buffers);
  auto const threads = static_cast<index_t>(blockDim.x);
  index_t const warps = warps_in_block();
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  float const scale = args.scale * 1.4426950408889634F;
  if (blocks > 1) meet_in_cluster();  // all blocks run before one looks into another

  // the next lane's books are asked for one lane ahead
  auto const books_of = [&](index_t number) {
    index_t const of = min(number, plan.schedule.lanes - 1);
    index_t const row = of / ledger.kv_heads;
    return books_at(ledger, row, ledger.lane(row, args.layer, of % ledger.kv_heads));
  };
  step_books coming = books_of(first_lane);
  for (index_t number = first_lane; number < plan.schedule.lanes;
       number += plan.schedule.clusters) {
    step_books const books = coming;
    coming = books_of(number + plan.schedule.clusters);
    index_t const count = books.row.count;
    if (count == 0) continue;
    position_t const next = books.row.next;
    index_t const row = number / ledger.kv_heads;
    index_t const head = number % ledger.kv_heads;
    index_t const lane = ledger.lane(row, args.layer, head);
    lane_share const share = share_of(books.lane.extent, rank, blocks);
    index_t const token = row * ledger.max_new;
    if (lane_positions.requested() != number) lane_positions.request(ledger, lane, share, number);
    lane_positions.take();

    if constexpr (observes_attention<P>) {
      if (decides) {  // read only after the attention: by then it is in L2
        constexpr index_t per_line = 128 / static_cast<index_t>(sizeof(slot_state_of<P>));
        for (index_t s = share.first + static_cast<index_t>(threadIdx.x) * per_line; s < share.end;
             s += threads * per_line) {
          prefetch_to_l2(ledger.states_of(lane) + s);
        }
      }
    }
    if constexpr (scores_keys<P>) {
      for (index_t j = warp; j < count; j += warps) {
        T const* const key = args.k(token + j, head);
        float squares = 0.0F;
        for (index_t c = lane_in_warp(); c < Channels; c += warp_threads) {
          auto const x = static_cast<float>(key[c]);
          squares += x * x;
        }
        for (int width = 1; width < warp_threads; width *= 2) {
          squares += __shfl_xor_sync(whole_warp, squares, width);
        }
        if (lane_in_warp() == 0) shared.norms[j] = squares;
      }
    }

    // The probability of a slot under query j of the pass, reduced over the query heads.
    auto const weight_of_query = [&](index_t s, index_t j) {
      float weight = 0.0F;
      for (index_t member = 0; member < plan.group; ++member) {
        index_t const r = j * plan.group + member;
        float const p = exp2_fast(logits[s * plan.rows + r] - shared.lse[r]);
        weight = args.reduction == gqa_reduction::max ? fmaxf(weight, p) : weight + p;
      }
      return args.reduction == gqa_reduction::mean ? weight / static_cast<float>(plan.group)
                                                   : weight;
    };
    auto const weight_of_pass = [&](index_t s, index_t first_query, index_t queries_here) {
      float weight = 0.0F;
      for (index_t j = 0; j < queries_here; ++j) {
        float const factor = query_weight_of(policy, count - 1 - first_query - j);
        if (factor != 0.0F) weight += factor * weight_of_query(s, j);
      }
      return weight;
    };

    index_t const tiles = (share.end - share.first + tile_slots - 1) / tile_slots;
    index_t const query_rows = count * plan.group;
    index_t const passes = (query_rows + plan.rows - 1) / plan.rows;
    for (index_t pass = 0; pass < passes; ++pass) {
      index_t const rows = min(plan.rows, query_rows - pass * plan.rows);
      query_tile<T, Channels> queries[QueryTiles];
      output_tile<T, Channels> outputs[QueryTiles];
      float peak[QueryTiles][2];  // running maximum of query rows 2t and 2t + 1, equal in all g
      float sum[QueryTiles][2];   // of this thread's own slots
      position_t sees[QueryTiles][2];  // the last position that those query rows see
#pragma unroll
      for (int n = 0; n < QueryTiles; ++n) {
        index_t const own = tile_queries * n + g;
        index_t const r = pass * plan.rows + own;
        queries[n].load(own < rows
                            ? reinterpret_cast<char const*>(args.q(
                                  token + r / plan.group, head * plan.group + r % plan.group))
                            : nullptr,
                        t);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          peak[n][e] = keep_never;
          sum[n][e] = 0.0F;
          sees[n][e] = next + (pass * plan.rows + tile_queries * n + 2 * t + e) / plan.group;
        }
      }

      for (index_t tile = warp; tile < tiles; tile += warps) {
        shared_pointer const staged = ring.take();
        index_t const own_slot = tile * tile_slots + lane_in_warp() % tile_slots;
        position_t own =
            share.first + own_slot < share.end ? lane_positions[own_slot] : no_position;
        if (own >= next + count) own = no_position;  // nobody sees it
        // bits of rows that are not kept tokens' (the upper half repeats the lower)
        unsigned const wrong = __ballot_sync(whole_warp, own < 0 || own >= next) & 0xFFFFU;
        if (wrong != 0) {
          patch_tile<T, Channels>(staged,
                                  wrong,
                                  own,
                                  next,
                                  share.first + tile * tile_slots,
                                  row,
                                  head,
                                  token,
                                  args,
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
            if constexpr (masks_attention<P>) {
              index_t const r = pass * plan.rows + tile_queries * n + 2 * t + i % 2;
              visible =
                  visible &&
                  sees_key(policy, p, sees[n][i % 2], head * plan.group + r % plan.group, args);
            }
            scores[n][i] = visible ? scores[n][i] * scale : keep_never;
          }
          if (plan.keeps_logits) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              index_t const r = tile_queries * n + 2 * t + i % 2;
              index_t const slot = tile * tile_slots + g + 8 * (i / 2);
              if (r < rows) logits[slot * plan.rows + r] = scores[n][i];
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

      if (plan.position_buffers == 2 && pass + 1 == passes && coming.row.count > 0 &&
          number + plan.schedule.clusters < plan.schedule.lanes) {
        index_t const following = number + plan.schedule.clusters;
        lane_positions.request(
            ledger,
            ledger.lane(following / ledger.kv_heads, args.layer, following % ledger.kv_heads),
            share_of(coming.lane.extent, rank, blocks),
            following);
      }

      // -------------------------------------------------------------- the warps, then the blocks
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
          if (g == 0) shared.warp_peak[warp][r] = {peak[n][e], total};
          float* const part = parts + (warp * plan.rows + r) * Channels;
#pragma unroll
          for (int i = 0; i < row_cut<T, Channels>::tiles; ++i) {
            index_t const c = output_tile<T, Channels>::first_channel(g, i);
            *reinterpret_cast<float2*>(part + c) = {outputs[n].sums[i][e],
                                                    outputs[n].sums[i][2 + e]};
          }
        }
      }
      __syncthreads();
      auto const write = [&](index_t r, index_t c, float2 x) {
        index_t const of = pass * plan.rows + r;
        T* const to = args.out(token + of / plan.group, head * plan.group + of % plan.group) + c;
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
        for (index_t w = 0; w < warps; ++w) highest = fmaxf(highest, shared.warp_peak[w][r].x);
        float total = 0.0F;
        float2 x{0.0F, 0.0F};
        for (index_t w = 0; w < warps; ++w) {
          float2 const peak_of = shared.warp_peak[w][r];
          float const factor = peak_of.x == keep_never ? 0.0F : exp2_fast(peak_of.x - highest);
          float2 const part =
              *reinterpret_cast<float2*>(parts + (w * plan.rows + r) * Channels + c);
          total += factor * peak_of.y;
          x.x += factor * part.x;
          x.y += factor * part.y;
        }
        if (share.blocks == 1) {
          write(r, c, {x.x / total, x.y / total});
          if (c == 0) shared.lse[r] = highest + log2f(total);
        } else {
          *reinterpret_cast<float2*>(parts + r * Channels + c) = x;
          if (c == 0) shared.peak[r] = {highest, total};
        }
      }
      if (share.blocks > 1) {
        sync_cluster();
        if (static_cast<index_t>(threadIdx.x) < rows) {
          float highest = keep_never;
          for (unsigned b = 0; b < share.blocks; ++b) {
            highest = fmaxf(highest, shared_of(&shared.peak[threadIdx.x], b)->x);
          }
          float total = 0.0F;
          for (unsigned b = 0; b < share.blocks; ++b) {
            float2 const of = *shared_of(&shared.peak[threadIdx.x], b);
            if (of.x != keep_never) total += exp2_fast(of.x - highest) * of.y;
          }
          shared.lse[threadIdx.x] = highest + log2f(total);
        }
        __syncthreads();
        for (index_t i = static_cast<index_t>(threadIdx.x + share.rank * blockDim.x);
             i < rows * pairs;
             i += static_cast<index_t>(share.blocks * blockDim.x)) {
          index_t const r = i / pairs;
          index_t const c = i % pairs * 2;
          float2 x{0.0F, 0.0F};
          for (unsigned b = 0; b < share.blocks; ++b) {
            float const peak_of = shared_of(&shared.peak[r], b)->x;
            if (peak_of == keep_never) continue;
            float const factor = exp2_fast(peak_of - shared.lse[r]);
            float2 const of = *reinterpret_cast<float2*>(shared_of(parts + r * Channels + c, b));
            x.x += factor * of.x;
            x.y += factor * of.y;
          }
          write(r, c, x);
        }
      } else {
        __syncthreads();
      }
      if (args.lse != nullptr && share.rank == 0 && static_cast<index_t>(threadIdx.x) < rows) {
        index_t const of = pass * plan.rows + static_cast<index_t>(threadIdx.x);
        args.lse[static_cast<std::int64_t>(token + of / plan.group) * args.q.heads +
                 head * plan.group + of % plan.group] =
            shared.lse[threadIdx.x] * 0.6931471805599453F;
      }
      __syncthreads();

      // -------------------------------------------------------------- weights
      index_t const first_query = pass * plan.rows / plan.group;
      index_t const queries_here = rows / plan.group;
      if (args.weights != nullptr) {
        // the last block also clears what lies behind the slots in use
        index_t const end = share.rank + 1 == share.blocks ? ledger.slots : share.end;
        for (index_t j = 0; j < queries_here; ++j) {
          float* const to =
              args.weights +
              (static_cast<std::int64_t>(row * ledger.kv_heads + head) * ledger.max_new +
               first_query + j) *
                  ledger.stride;
          for (index_t s = share.first + static_cast<index_t>(threadIdx.x); s < end; s += threads) {
            to[s] = s < share.end ? weight_of_query(s - share.first, j) : 0.0F;
          }
        }
      }
      if constexpr (observes_attention<P>) {
        if (decides && passes > 1) {
          for (index_t s = static_cast<index_t>(threadIdx.x); s < share.end - share.first;
               s += threads) {
            float const before = pass == 0 ? 0.0F : sums[s];
            sums[s] = before + weight_of_pass(s, first_query, queries_here);
          }
          __syncthreads();  // the next pass writes other logits
        }
      }
      if (share.blocks > 1 && pass + 1 < passes) sync_cluster();  // ... and other parts
    }

    if (share.rank == 0 && args.key_norms != nullptr && threadIdx.x < count) {
      args.key_norms[(row * ledger.kv_heads + head) * ledger.max_new +
                     static_cast<index_t>(threadIdx.x)] = shared.norms[threadIdx.x];
    }
    if (decides) {
      decide_lane(
          ledger,
          policy,
          row,
          args.layer,
          head,
          books,
          count,
          share,
          [&](index_t slot) { return lane_positions[slot - share.first]; },
          [&](index_t slot) {
            index_t const s = slot - share.first;
            return passes > 1 ? sums[s] : weight_of_pass(s, 0, count);
          },
          [&](index_t j) { return shared.norms[j]; },
          shared.decision);
    }
    // nobody goes on, or leaves, while its shared memory is being read
    if (share.blocks > 1) {
      meet_in_cluster();
    } else {
      __syncthreads();
    }
  }
}

/// How a launch cuts its work, but for the schedule.
///
/// @param block_slots  largest share of a block
/// @param warps        of a block
/// @param resident     blocks that a multiprocessor should hold; fewer, if rings have no room
/// @throws std::invalid_argument if not even one block fits
template <class P, class T, class View>
attend_plan plan_attention(attend_args<T, View> const& args,
                           ledger_view<P> const& ledger,
                           index_t channels,
                           index_t query_tiles,
                           index_t block_slots,
                           int warps,
                           int resident) {
  attend_plan plan;
  plan.group = args.q.heads / ledger.kv_heads;
  index_t const all_rows = ledger.max_new * plan.group;
  plan.rows = std::min(all_rows, query_tiles * tile_queries / plan.group * plan.group);
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  bool const learns = observes_attention<P> && decides;
  plan.keeps_logits = learns || args.weights != nullptr;
  plan.whole_tiles = has_whole_tiles(args.keys) && has_whole_tiles(args.values);
  auto const floats = [](index_t count) { return static_cast<int>(sizeof(float)) * count; };
  int const parts = floats(warps * plan.rows * channels);
  int const logits = plan.keeps_logits ? floats(block_slots * plan.rows) : 0;
  int const sums = learns && all_rows > plan.rows ? floats(block_slots) : 0;
  plan.position_buffers = block_slots > 256 ? 1 : 2;  // larger ones would cost warps
  int const positions = static_cast<int>(plan.position_buffers) * floats(block_slots);
  int const stage_bytes = 2 * tile_slots * channels * static_cast<int>(sizeof(T));
  int const stage = warps * (stage_bytes + arrival_bytes);
  int const others = parts + logits + sums + positions;
  constexpr int of_block = 1024 + static_cast<int>(sizeof(attend_shared));  // 1 KB is CUDA's own
  constexpr int of_multiprocessor = 228 * 1024;
  auto const stages_with = [&](int n) {
    return (std::min(of_multiprocessor / n, 227 * 1024) - of_block - others) / stage;
  };
  while (resident > 1 && stages_with(resident) < 2) --resident;
  plan.block_slots = block_slots;
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
  plan.positions = plan.sums + sums;
  plan.bytes = plan.positions + positions;
  return plan;
}

template <class P, class T, class View>
void check_attention(attend_args<T, View> const& args,
                     ledger_view<P> const& ledger,
                     index_t channels) {
  auto const require = [](bool holds, std::string const& what) {
    if (!holds) throw std::logic_error("adore: attend_async: " + what);
  };
  require(args.q.channels == channels && args.keys.channels == channels &&
              args.values.channels == channels && args.k.channels == channels &&
              args.v.channels == channels && args.out.channels == channels,
          "q, k, v, out and the store must have " + std::to_string(channels) +
              " channels per head, as the template argument says");
  require(
      args.keys.kv_heads == ledger.kv_heads && args.values.kv_heads == ledger.kv_heads &&
          args.k.heads == ledger.kv_heads && args.v.heads == ledger.kv_heads,
      "k, v and the store must have the ledger's " + std::to_string(ledger.kv_heads) + " KV heads");
  index_t const group = args.q.heads / ledger.kv_heads;
  require(group * ledger.kv_heads == args.q.heads && args.out.heads == args.q.heads && group >= 1 &&
              group <= 2 * tile_queries,
          std::to_string(args.q.heads) + " query heads: must be 1 to 16 times the " +
              std::to_string(ledger.kv_heads) + " KV heads");
  index_t const tokens = ledger.row_count * ledger.max_new;
  require(args.q.tokens >= tokens && args.k.tokens >= tokens && args.v.tokens >= tokens &&
              args.out.tokens >= tokens,
          "q, k, v and out must have room for " + std::to_string(tokens) +
              " tokens, max_new for each row");
  require(ledger.max_new <= most_new_tokens,
          "max_new = " + std::to_string(ledger.max_new) + ": at most " +
              std::to_string(most_new_tokens));
  require(args.layer >= 0 && args.layer < ledger.layers,
          "layer " + std::to_string(args.layer) + " of " + std::to_string(ledger.layers));
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

template <int Channels, int QueryTiles, class P, class T, class View>
void launch_attention(cudaStream_t stream,
                      attend_args<T, View> args,
                      ledger_view<P> const& ledger,
                      P const& policy) {
  // everything that a row's bits could depend on follows from the slots, not from the batch
  index_t blocks = 1;
  while (blocks * slots_per_block < ledger.slots &&
         blocks < static_cast<index_t>(most_blocks_per_lane)) {
    blocks *= 2;
  }
  index_t const tiles = (ledger.slots + tile_slots - 1) / tile_slots;
  index_t const block_slots = (tiles + blocks - 1) / blocks * tile_slots;
  constexpr int at_most = attend_warps_per_multiprocessor<T, Channels, QueryTiles>;
  index_t const lanes = ledger.row_count * ledger.kv_heads;
  int const warps = block_slots <= 256 ? 2 : 4;
  // No more blocks on a multiprocessor than it takes to hold all lanes: these get longer rings. But
  // a cluster may find some multiprocessors taken, so that two of its blocks must fit on one.
  index_t const all = (lanes * blocks + multiprocessors() - 1) / multiprocessors();
  int const wanted = std::min(at_most / warps, std::max(blocks > 1 ? 2 : 1, static_cast<int>(all)));
  attend_plan plan = plan_attention(args, ledger, Channels, QueryTiles, block_slots, warps, wanted);
  auto* const kernel = attend_kernel<T, Channels, QueryTiles, P, View>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.bytes));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(warps * warp_threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.bytes);
  config.stream = stream;
  plan.schedule.lanes = lanes;
  if (blocks == 1) {
    // without the attribute blocks are spread over all multiprocessors, with it they fill one after
    // the other
    int fit = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &fit, kernel, warps * warp_threads, config.dynamicSmemBytes));
    plan.schedule.clusters = evenly(lanes, std::max(1, fit * multiprocessors()));
  } else {
    config.attrs = &cluster;
    config.numAttrs = 1;
    if (blocks > 8) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    int fit = 0;
    config.gridDim = dim3(static_cast<unsigned>(lanes * blocks));
    check(cudaOccupancyMaxActiveClusters(&fit, kernel, &config));
    plan.schedule.clusters = std::min(lanes, std::max(1, fit));
  }
  config.gridDim = dim3(static_cast<unsigned>(plan.schedule.clusters * blocks));
  if (args.scale == 0.0F) args.scale = 1.0F / std::sqrt(static_cast<float>(Channels));
  check(cudaLaunchKernelEx(&config, kernel, args, ledger, policy, plan));
}

}  // namespace detail

/// Appends, attends and, in scope kv_head, decides: one launch for one layer of all rows.
///
/// The number of query heads may be 1 to 16 times that of KV heads, a step may bring up to 16
/// tokens per row. Query j sees the tokens up to position next + j.
///
/// @tparam Channels  per head: 64, 96, 128, 256 and other multiples of 32 (16 for float)
/// @throws std::logic_error if shapes do not fit together, std::invalid_argument if the policy's
///         weights do not fit into shared memory (more than about 50,000 slots x query rows of a
///         KV head per block; a lane is shared by up to 16 blocks), cuda_error
/// Stream: asynchronous, capturable. Memory: none but shared memory.
/// Needs:  compute capability 9.0 (clusters).
template <int Channels, eviction_policy P, class T, class View>
void attend_async(cudaStream_t stream,
                  attend_args<T, View> const& args,
                  ledger_view<P> const& ledger,
                  P const& policy) {
  static_assert(std::is_same_v<typename checked_device_policy<P>::type, P>);
  detail::check_attention(args, ledger, Channels);
  if (args.q.heads / ledger.kv_heads * ledger.max_new <= tile_queries) {
    detail::launch_attention<Channels, 1>(stream, args, ledger, policy);
  } else {
    detail::launch_attention<Channels, 2>(stream, args, ledger, policy);
  }
}

}  // namespace adore::gpu
