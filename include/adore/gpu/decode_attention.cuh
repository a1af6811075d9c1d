// SPDX-License-Identifier: Apache-2.0
// Decode attention in one launch per layer: appends the new K and V, attends, lets the policy
// observe, releases its victims and reserves the next slots. (For a policy that limits attention to
// the strongest keys it is top_k_attention.cuh.)
#pragma once

#include "adore/attention/attention_scale.hpp"
#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attend_kernel.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/lane_cut.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/top_k_attention.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {
namespace detail {

template <int Channels, int QueryRows, class Plan, class P, class T, class View, class Guests>
void launch_planned(cudaStream_t stream,
                    attend_args<T, View, Guests> args,
                    ledger_view<P> const& ledger,
                    P const& policy,
                    Plan plan,
                    index_t processors) {
  index_t const lanes = plan.schedule.lanes;
  auto* const kernel = attend_kernel<T, Channels, QueryRows, P, View, Guests, Plan>;
  // always the same, so that what a captured graph, or another thread, relies on stays true
  constexpr int most_bytes = static_cast<int>(most_dynamic_bytes(sizeof(attend_shared<QueryRows>)));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes));
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  int const threads = plan.warps * warp_threads;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.bytes);
  config.stream = stream;
  config.attrs = attributes;
  int fit = 0;
  if (plan.blocks == 1 || plan.exchanges) {
    // without the attribute blocks are spread over all multiprocessors, with it they fill one after
    // the other
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &fit, kernel, threads, config.dynamicSmemBytes));
    plan.schedule.clusters = evenly(lanes, std::max(index_t{1}, fit * processors / plan.blocks));
    if (plan.exchanges) {
      cudaLaunchAttribute& all_at_once = attributes[config.numAttrs++];
      all_at_once.id = cudaLaunchAttributeCooperative;
      all_at_once.val.cooperative = 1;
    }
  } else {
    attributes[config.numAttrs++] = clusters_of(static_cast<unsigned>(plan.blocks));
    if (plan.blocks > 8) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    config.gridDim = dim3(static_cast<unsigned>(lanes * plan.blocks));
    check(cudaOccupancyMaxActiveClusters(&fit, kernel, &config));
    plan.schedule.clusters = std::min(lanes, std::max(1, fit));
  }
  config.gridDim = dim3(static_cast<unsigned>(plan.schedule.clusters * plan.blocks));
  if (args.overlaps) attributes[config.numAttrs++] = may_overlap();
  args.scale = attention_scale_of(args.scale, Channels);
  check(cudaLaunchKernelEx(&config, kernel, args, ledger, policy, plan));
}

template <int Channels, int QueryRows, class P, class T, class View, class Guests>
void launch_attention(cudaStream_t stream,
                      attend_args<T, View, Guests> const& args,
                      ledger_view<P> const& ledger,
                      P const& policy) {
  auto const processors = static_cast<index_t>(multiprocessors());
  constexpr int most_warps = attend_warps_per_multiprocessor<T, Channels, QueryRows>;
  attend_plan const plan =
      plan_launch(args,
                  ledger,
                  Channels,
                  QueryRows,
                  most_warps,
                  lane_cut_of(ledger.slots, QueryRows, most_warps, args.cut_for_lanes),
                  processors,
                  static_cast<int>(sizeof(attend_shared<QueryRows>)));
  if (plan.stages < 1) {
    throw std::invalid_argument(
        "adore: attend_async: " + std::to_string(ledger.slots) + " slots with " +
        std::to_string(plan.rows) + " query rows at once need " + std::to_string(plan.bytes) +
        " bytes of shared memory for the policy's weights, more than a block has; use fewer slots, "
        "a policy that does not observe attention, or cut_for_lanes = 0");
  }
  if constexpr (QueryRows <= tile_queries && !Guests::has_guests) {
    if (has_one_query(plan, ledger.max_new)) {
      launch_planned<Channels, QueryRows>(
          stream, args, ledger, policy, one_query_plan{plan}, processors);
      return;
    }
  }
  launch_planned<Channels, QueryRows>(stream, args, ledger, policy, plan, processors);
}

}  // namespace detail

/// Appends, attends and, in scope kv_head, decides: one launch for one layer of all rows.
///
/// The number of query heads may be 1 to 16 times that of KV heads, a step may bring up to 16
/// tokens per row. Query j sees the tokens up to position next + j. The bits of a row depend on its
/// lanes, on the ledger's slots and on `cut_for_lanes`, not on the rows around it nor their number.
///
/// @tparam Channels       per head: 64, 96, 128, 256 and other multiples of 32 (16 for float)
/// @tparam MostQueryRows  K and V are read once per 16 query rows (queries x query heads of a KV
///                        head), or once per 8 or 4, if no more are asked for: that compiles faster
/// @throws std::logic_error if shapes do not fit together, std::invalid_argument for memory that
///         cannot be read in chunks of 16 bytes, or if the policy's
///         weights do not fit into shared memory (more than about 45,000 slots x query rows of a
///         KV head per block, 10,000 where 16 tokens of 256 floats come at once; a lane is shared
///         by up to 16 blocks, or 64 if there are few), cuda_error
/// Stream: asynchronous, capturable; launches for one ledger must follow one another.
/// Memory: shared memory, and where at most 64 lanes have over 1024 slots what the ledger holds for
///         them.
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
  static_assert(!limits_attention<P>, "adore::gpu: limited attention knows no guests");
  detail::check_attention(args, ledger, Channels);
  if (ledger.row_count == 0) return;
  index_t const group = args.q.heads / ledger.kv_heads;
  index_t const rows = group * (ledger.max_new + args.rebuilt.most);
  if (group > MostQueryRows) {
    throw std::logic_error("adore: attend_async: " + std::to_string(group) +
                           " query heads per KV head, but the template argument MostQueryRows is " +
                           std::to_string(MostQueryRows));
  }
  if constexpr (sizeof(T) == 2) {
    if (rows <= narrow_rows || MostQueryRows <= narrow_rows) {
      detail::launch_attention<Channels, narrow_rows>(stream, args, ledger, policy);
      return;
    }
  }
  if constexpr (MostQueryRows > tile_queries) {
    if (rows > tile_queries) {
      detail::launch_attention<Channels, 2 * tile_queries>(stream, args, ledger, policy);
      return;
    }
  }
  if constexpr (MostQueryRows > narrow_rows || sizeof(T) != 2) {
    detail::launch_attention<Channels, tile_queries>(stream, args, ledger, policy);
  }
}

}  // namespace adore::gpu
