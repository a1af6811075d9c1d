// SPDX-License-Identifier: Apache-2.0
// Decode attention in one launch per layer: appends the new K and V, attends, lets the policy
// observe, releases its victims and reserves the next slots.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/lane_attention.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_head.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tile_ring.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {
namespace detail {

/// Lanes of one layer, one after the other; `QueryTiles` x 8 query rows at once.
template <class T, int Channels, int QueryTiles, class P, class View, class Guests>
__global__ void __launch_bounds__(
    attend_warps_per_multiprocessor<T, Channels, QueryTiles>* warp_threads, 1)
    attend_kernel(__grid_constant__ attend_args<T, View, Guests> const args,
                  __grid_constant__ ledger_view<P> const ledger,
                  __grid_constant__ P const policy,
                  __grid_constant__ attend_plan const plan) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  __shared__ attend_shared shared;
  unsigned const rank = cluster_rank();
  unsigned const blocks = cluster_blocks();
  auto const first_lane = static_cast<index_t>(blockIdx.x / blocks);
  index_t const* rebuilt_counts = nullptr;
  if constexpr (Guests::has_guests) rebuilt_counts = args.rebuilt.counts;
  tile_ring<T, Channels, P, View> ring(
      {ledger, args.keys, args.values, args.layer, rebuilt_counts, plan},
      first_lane,
      shared_address(dynamic),
      shared_address(dynamic) + static_cast<unsigned>(plan.arrivals));
  lane_head<T, Channels> fetched(plan,
                                 ledger.max_new,
                                 shared_address(dynamic) + static_cast<unsigned>(plan.heads),
                                 shared_address(shared.head_arrivals));
  lane_attention<T, Channels, QueryTiles, P, View, Guests> attention(
      args, ledger, policy, plan, dynamic, shared);
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  if (blocks > 1) meet_in_cluster();  // all blocks run before one looks into another

  // the next lane's books are asked for one lane ahead
  auto const books_of = [&](index_t number) {
    index_t const of = min(number, plan.schedule.lanes - 1);
    index_t const row = of / ledger.kv_heads;
    return books_at(ledger, row, ledger.lane(row, args.layer, of % ledger.kv_heads));
  };
  auto const rebuilt_of = [&](index_t number) -> index_t {
    if constexpr (Guests::has_guests) {
      if (args.rebuilt.counts == nullptr) return 0;
      return args.rebuilt.counts[min(number, plan.schedule.lanes - 1) / ledger.kv_heads];
    } else {
      return 0;
    }
  };
  step_books coming = books_of(first_lane);
  index_t coming_rebuilt = rebuilt_of(first_lane);
  for (index_t number = first_lane; number < plan.schedule.lanes;
       number += plan.schedule.clusters) {
    index_t const following = number + plan.schedule.clusters;
    lane_of_step lane{.row = number / ledger.kv_heads,
                      .head = number % ledger.kv_heads,
                      .rebuilt = coming_rebuilt,
                      .books = coming};
    coming = books_of(following);
    coming_rebuilt = rebuilt_of(following);
    if (lane.count() == 0) continue;
    lane.lane = ledger.lane(lane.row, args.layer, lane.head);
    lane.token = lane.row * ledger.max_new;
    lane.share = share_of(lane.books.lane.extent, rank, blocks);
    if (fetched.requested() != number) {
      fetched.request(args, ledger, number, lane.count(), lane.rebuilt, lane.share);
    }
    fetched.take();
    if constexpr (observes_attention<P>) {
      if (decides) {  // read only after the attention: by then it is in L2
        constexpr index_t per_line = 128 / static_cast<index_t>(sizeof(slot_state_of<P>));
        for (index_t s = lane.share.first + static_cast<index_t>(threadIdx.x) * per_line;
             s < lane.share.end;
             s += static_cast<index_t>(blockDim.x) * per_line) {
          prefetch_to_l2(ledger.states_of(lane.lane) + s);
        }
      }
    }
    if constexpr (scores_keys<P>) attention.measure_keys(lane);

    index_t const passes = attention.passes(lane);
    for (index_t pass = 0; pass < passes; ++pass) {
      attention.attend(lane, pass, fetched, ring);
      if (plan.head_buffers == 2 && pass + 1 == passes && coming.row.count > 0 &&
          following < plan.schedule.lanes) {
        fetched.request(args,
                        ledger,
                        following,
                        coming.row.count,
                        coming_rebuilt,
                        share_of(coming.lane.extent, rank, blocks));
      }
      attention.merge(lane, pass);
      attention.use_weights(lane, pass, decides);
      if (pass + 1 < passes) sync_lane(lane.share);  // the next pass writes over what this one read
    }
    if (decides) attention.decide(lane, fetched);
    // nobody goes on, or leaves, while its shared memory is being read
    if (blocks > 1) {
      meet_in_cluster();
    } else {
      __syncthreads();
    }
  }
}

template <int Channels, int QueryTiles, class P, class T, class View, class Guests>
void launch_attention(cudaStream_t stream,
                      attend_args<T, View, Guests> args,
                      ledger_view<P> const& ledger,
                      P const& policy) {
  // everything that a row's bits could depend on follows from the slots, not from the batch
  index_t blocks = 1;
  while (blocks * slots_per_block < ledger.slots &&
         blocks < static_cast<index_t>(most_blocks_per_lane)) {
    blocks *= 2;
  }
  index_t const tiles = (ledger.slots + tile_slots - 1) / tile_slots;
  index_t const lanes = ledger.row_count * ledger.kv_heads;
  constexpr int at_most = attend_warps_per_multiprocessor<T, Channels, QueryTiles>;
  int warps = 0;
  auto const planned = [&] {
    index_t const block_slots = (tiles + blocks - 1) / blocks * tile_slots;
    warps = block_slots <= 256 ? 2 : 4;
    // No more blocks on a multiprocessor than it takes to hold all lanes: these get longer rings.
    // But a cluster may find some multiprocessors taken, so that two of its blocks should fit on
    // one.
    index_t const all = (lanes * blocks + multiprocessors() - 1) / multiprocessors();
    int const wanted = std::max(blocks > 1 ? 2 : 1, static_cast<int>(all));
    return plan_attention(
        args, ledger, Channels, QueryTiles, block_slots, warps, std::min(at_most / warps, wanted));
  };
  attend_plan plan = planned();
  if (blocks > 8 && plan.resident == 1) {  // so large a cluster would wait for a whole GPC
    blocks = 8;
    plan = planned();
  }
  auto* const kernel = attend_kernel<T, Channels, QueryTiles, P, View, Guests>;
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
/// @tparam Channels       per head: 64, 96, 128, 256 and other multiples of 32 (16 for float)
/// @tparam MostQueryRows  up to 8, K and V are read once per 8 query rows (queries x query heads of
///                        a KV head), else once per 16; 8 compile half as long
/// @throws std::logic_error if shapes do not fit together, std::invalid_argument if the policy's
///         weights do not fit into shared memory (more than about 50,000 slots x query rows of a
///         KV head per block; a lane is shared by up to 16 blocks), cuda_error
/// Stream: asynchronous, capturable. Memory: none but shared memory.
/// Needs:  compute capability 9.0 (clusters).
template <int Channels,
          index_t MostQueryRows = 256,
          eviction_policy P,
          class T,
          class View,
          class Guests>
void attend_async(cudaStream_t stream,
                  attend_args<T, View, Guests> const& args,
                  ledger_view<P> const& ledger,
                  P const& policy) {
  static_assert(std::is_same_v<typename checked_device_policy<P>::type, P>);
  detail::check_attention(args, ledger, Channels);
  index_t const group = args.q.heads / ledger.kv_heads;
  index_t const rows = group * (ledger.max_new + args.rebuilt.most);
  if (group > MostQueryRows) {
    throw std::logic_error("adore: attend_async: " + std::to_string(group) +
                           " query heads per KV head, compiled for " +
                           std::to_string(MostQueryRows) + " query rows");
  }
  if constexpr (MostQueryRows > tile_queries) {
    if (rows > tile_queries) {
      detail::launch_attention<Channels, 2>(stream, args, ledger, policy);
      return;
    }
  }
  detail::launch_attention<Channels, 1>(stream, args, ledger, policy);
}

}  // namespace adore::gpu
