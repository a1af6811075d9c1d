// SPDX-License-Identifier: Apache-2.0
// The end of a step as stages of their own: lanes that span heads or layers, drafts of which only
// a part is accepted, engines that keep their own attention.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/decide_kernel.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {

namespace detail {

template <class P>
__global__ void advance_kernel(ledger_view<P> const ledger, index_t const* accepted) {
  auto const row = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= ledger.row_count) return;
  row_books& books = ledger.rows[row];
  if (books.count > 0) books.next += accepted == nullptr ? books.count : accepted[row];
}

/// @param blocks  that share a lane: a cluster
template <decision_part Part, bool OneWarp, class P>
void launch_decision(cudaStream_t stream,
                     ledger_view<P> const& ledger,
                     P const& policy,
                     index_t layer,
                     decide_args const& args,
                     victims_view const& victims,
                     index_t threads,
                     index_t blocks) {
  index_t const heads = ledger.lane_heads();
  index_t const warps = threads / warp_threads;
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(OneWarp ? (heads + warps - 1) / warps : heads * blocks),
           static_cast<unsigned>(ledger.row_count));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = attributes;
  if (blocks > 1) attributes[config.numAttrs++] = clusters_of(static_cast<unsigned>(blocks));
  if (args.overlaps && learns<Part>) attributes[config.numAttrs++] = may_overlap();
  check(cudaLaunchKernelEx(
      &config, decide_kernel<Part, OneWarp, P>, ledger, policy, layer, args, victims, blocks));
}

/// Launches a part of the decision of lanes, cut as their number and length suggest.
template <decision_part Part, class P>
void launch_part(cudaStream_t stream,
                 ledger_view<P> const& ledger,
                 P const& policy,
                 index_t layer,
                 decide_args const& args,
                 victims_view const& victims) {
  if (ledger.reach == scope::kv_head && ledger.slots <= most_slots_of_warp) {
    launch_decision<Part, true>(
        stream, ledger, policy, layer, args, victims, one_warp_threads, /*blocks=*/1);
    return;
  }
  // two slots per thread, as long as the lanes leave room for that
  index_t const lanes = ledger.row_count * ledger.lane_heads();
  auto const processors = static_cast<index_t>(multiprocessors());
  index_t threads = 128;
  while (threads < most_decide_threads && 2 * threads < ledger.slots &&
         lanes * threads < 256 * processors) {
    threads *= 2;
  }
  index_t blocks = 1;
  while (blocks < 8 && 2 * threads * blocks < ledger.slots && 2 * blocks * lanes <= processors) {
    blocks *= 2;
  }
  launch_decision<Part, false>(stream, ledger, policy, layer, args, victims, threads, blocks);
}

/// Checks and launches a part of the decision of one layer's lanes; scope model: of all lanes.
///
/// @param name  of the public function, for messages
template <decision_part Part, eviction_policy P>
void decide_in_part(char const* name,
                    cudaStream_t stream,
                    ledger_view<P> const& ledger,
                    P const& policy,
                    index_t layer,
                    decide_args const& args,
                    victims_view const& victims = {}) {
  static_assert(std::is_same_v<typename checked_device_policy<P>::type, P>);
  auto const refuse = [&](std::string const& what) {
    throw std::logic_error("adore: " + std::string(name) + ": " + what);
  };
  if constexpr (learns<Part>) {
    if (observes_attention<P>) {
      if (args.weights == nullptr) refuse("the policy observes attention, weights are needed");
      if (!is_aligned(args.weights, 16)) refuse("weights must lie at a multiple of 16 bytes");
    }
    if (scores_keys<P> && args.key_norms == nullptr) {
      refuse("the policy scores keys, key_norms are needed");
    }
  }
  if constexpr (Part == decision_part::selection || Part == decision_part::release) {
    if (victims.counts == nullptr || victims.tokens == nullptr) {
      refuse("victims must have counts [lane] and tokens [lane, most]");
    }
    if (victims.most < ledger.max_new) {
      refuse("victims.most = " + std::to_string(victims.most) +
             ": a full lane gives up max_new = " + std::to_string(ledger.max_new) + " in a step");
    }
  }
  if (layer < 0 || layer >= ledger.lane_layers()) {
    refuse("layer " + std::to_string(layer) + ": the ledger has lanes of " +
           std::to_string(ledger.lane_layers()) + " layers (scope model: of one for all)");
  }
  if (args.advances && ledger.reach != scope::model) {
    refuse("only in scope model one decision ends the step; call advance_async");
  }
  bool const has_nothing_to_learn =
      Part == decision_part::observation && std::is_empty_v<slot_state_of<P>>;
  if (ledger.row_count == 0 || has_nothing_to_learn) return;
  launch_part<Part>(stream, ledger, policy, layer, args, victims);
}

}  // namespace detail

/// Lets the policy observe and decides on the lanes of one layer; scope model: on all lanes. After
/// the last of them `advance_async` ends the step, or in scope model `decide_args::advances`.
///
/// @param layer  of the lanes; in scope model 0
/// @throws std::logic_error if weights are missing that the policy observes, or norms of keys that
///         it scores, or if `args` or layer do not fit, cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P>
void decide_async(cudaStream_t stream,
                  ledger_view<P> const& ledger,
                  P const& policy,
                  index_t layer,
                  decide_args const& args) {
  detail::decide_in_part<detail::decision_part::all>(
      "decide_async", stream, ledger, policy, layer, args);
}

/// The step is over: each sequence is `accepted` tokens longer. After the last layer's decision.
///
/// @param accepted  [row] as in `decide_args`, device memory
/// Stream: asynchronous, capturable. Memory: none.
template <eviction_policy P>
void advance_async(cudaStream_t stream,
                   ledger_view<P> const& ledger,
                   index_t const* accepted = nullptr) {
  if (ledger.row_count == 0) return;
  constexpr unsigned threads = 128;
  unsigned const blocks = (static_cast<unsigned>(ledger.row_count) + threads - 1) / threads;
  detail::advance_kernel<P><<<blocks, threads, 0, stream>>>(ledger, accepted);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
