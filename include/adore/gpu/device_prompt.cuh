// SPDX-License-Identifier: Apache-2.0
// A dense prompt enters a row of the device's books: the policy learns of all of its tokens at
// once, and the best of them get slots. (Their K and V follow by append_prompt.cuh.)
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/best_of.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_end.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/invalid_field.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {

/// A prompt of `tokens` tokens, token i at position i, and what its dense attention has left
/// behind. All device memory.
struct prompt_of_row {
  index_t row = 0;
  index_t tokens = 0;
  /// [layer, kv_head, weights_stride] per token: the sum over the prompt's queries of query weight
  /// x probability, reduced over query heads, as `weights_async` forms them. Scope model: all
  /// layers; otherwise only the layer that enters. Unused by policies that do not observe.
  float const* weights = nullptr;
  std::int64_t weights_stride = 0;   ///< at least `tokens`
  float const* key_norms = nullptr;  ///< [layer, kv_head, token] squared, if the policy scores keys
};

/// What a policy must leave alone to select from a prompt here, one sentence for each.
template <eviction_policy P>
struct checked_prompt_policy : checked_device_policy<P> {
  static_assert(
      !releases_blocks<P> && !relents<P>,
      "adore::gpu: policies that release blocks or relent select from a prompt on the host");
  static_assert(!reads_tokens<P> && !scores_tokens<P>,
                "adore::gpu: policies that read tokens or take scores get a prompt in steps");
  static_assert(!masks_attention<P> && !marks_tokens<P>,
                "adore::gpu: policies that hide tokens get a prompt in steps");
  static_assert(!pools_prompt<P> && !budgets_prompt<P> && !divides_budget<P>,
                "adore::gpu: policies made for prompts (snapkv, ada_kv) select on the host");
};

namespace detail {

/// A lane of the row after its prompt, before anything is released.
template <eviction_policy P>
__device__ __forceinline__ lane_view prompt_view(ledger_view<P> const& ledger,
                                                 prompt_of_row const& prompt,
                                                 index_t layer,
                                                 index_t lane_head) {
  return {prompt.tokens - 1,
          prompt.tokens,
          ledger.lanes[ledger.lane(prompt.row, layer, lane_head)].budget,
          ledger.reach == scope::model ? 0 : layer,
          ledger.reach == scope::kv_head ? lane_head : 0,
          ledger.rows[prompt.row].seed,
          /*ends_prompt=*/true};
}

/// What the policy makes of a token. Sums run over layers, then heads, always in this order.
template <eviction_policy P>
__device__ __forceinline__ slot_state_of<P> state_of_prompt(ledger_view<P> const& ledger,
                                                            P const& policy,
                                                            prompt_of_row const& prompt,
                                                            lane_view const& view,
                                                            index_t lane_head,
                                                            position_t token) {
  slot_state_of<P> state{};
  lane_sources const sources = sources_of(ledger, lane_head);
  auto const sum = [&](float const* from, std::int64_t stride) {
    float all = 0.0F;
    for (index_t l = 0; l < sources.layers; ++l) {
      for (index_t h = sources.first_head; h < sources.end_head; ++h) {
        all += from[(std::int64_t{l} * ledger.kv_heads + h) * stride + token];
      }
    }
    return all;
  };
  if constexpr (scores_keys<P>) policy.score_key(state, sum(prompt.key_norms, prompt.tokens));
  if constexpr (observes_attention<P>) {
    policy.observe(state,
                   shown_slot(policy, token, state),
                   view,
                   sum(prompt.weights, prompt.weights_stride),
                   prompt.tokens);
  }
  return state;
}

/// Grid: (block of tokens, lane of the layer).
template <eviction_policy P>
__global__ void rank_prompt_kernel(ledger_view<P> const ledger,
                                   P const policy,
                                   index_t const layer,
                                   prompt_of_row const prompt,
                                   float* const priorities,
                                   std::int64_t const stride,
                                   index_t* const keep) {
  auto const lane_head = static_cast<index_t>(blockIdx.y);
  auto const token = static_cast<position_t>(blockIdx.x * blockDim.x + threadIdx.x);
  lane_view const view = prompt_view(ledger, prompt, layer, lane_head);
  if (token == 0) keep[lane_head] = min(view.budget, prompt.tokens);
  if (token >= prompt.tokens) return;
  auto const state = state_of_prompt(ledger, policy, prompt, view, lane_head, token);
  lane_state_of<P> const lane_state = *ledger.lane_state(ledger.lane(prompt.row, layer, lane_head));
  priorities[lane_head * stride + token] =
      priority_of(policy, shown_slot(policy, token, state), view, state, lane_state);
}

/// Grid: (lane of the layer). The kept tokens get the slots 0, 1, ..., those to come the next ones.
template <eviction_policy P>
__global__ void enter_prompt_kernel(ledger_view<P> const ledger,
                                    P const policy,
                                    index_t const layer,
                                    prompt_of_row const prompt,
                                    position_t const* const kept,
                                    std::int64_t const stride,
                                    index_t const* const counts) {
  auto const lane_head = static_cast<index_t>(blockIdx.x);
  index_t const lane = ledger.lane(prompt.row, layer, lane_head);
  lane_view const view = prompt_view(ledger, prompt, layer, lane_head);
  index_t const count = counts[lane_head];
  __syncthreads();  // all have read the lane's budget before it is written
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.slots - ledger.guests;
       s += static_cast<index_t>(blockDim.x)) {
    position_t& position = ledger.positions[ledger.cell(lane) + s];
    if (s >= count) {
      index_t const j = s - count;  // of the tokens to come
      bool const reserved = j < ledger.max_new;
      position_t const coming = prompt.tokens + j;
      position = reserved ? coming : no_position;
      if (reserved) {
        ledger.new_slots[std::int64_t{lane} * ledger.max_new + coming % ledger.max_new] = s;
      }
      continue;
    }
    position = kept[lane_head * stride + s];
    if constexpr (!std::is_empty_v<slot_state_of<P>>) {
      ledger.states_of(lane)[s] =
          state_of_prompt(ledger, policy, prompt, view, lane_head, position);
    }
  }
  if (threadIdx.x != 0) return;
  ledger.lanes[lane] = {count, count + ledger.max_new, view.budget};
  if (lane_head == 0) ledger.rows[prompt.row].next = prompt.tokens;
}

}  // namespace detail

/// Memory in which a row's prompt is selected from, for one row at a time.
///
/// A prompt enters in this order: `open_async` of the row; the engine's dense attention over the
/// prompt, and if the policy observes, `weights_async` over its keys (`filled_slots`, one row, as
/// many queries as tokens); then of each layer `enter_async` and `append_prompt_async`, in scope
/// model one `enter_async` with all layers' weights before them. Until then no step may begin; the
/// next one is the row's first. (What a prompt's query may see of the tokens before it under
/// `masks_prompt` is for the dense attention to mask.)
///
/// Memory: per lane of a layer of a row 8 bytes per token of the longest prompt, and 8.
class device_prompt {
 public:
  /// @param lanes  of a layer of a row: `ledger_view::lane_heads`
  /// @param most   tokens of the longest prompt
  /// @throws std::invalid_argument, cuda_error
  device_prompt(index_t lanes, index_t most)
      : lanes_(checked(lanes, "lanes")),
        most_(checked(most, "most")),
        stride_((most + 3) / 4 * std::int64_t{4}),
        priorities_(cells()),
        kept_(cells()),
        keep_(static_cast<std::size_t>(lanes)),
        counts_(static_cast<std::size_t>(lanes)) {}

  /// The policy observes the prompt, and the best tokens of each lane of a layer get its slots, as
  /// `adore::select` chooses; scope model: of all layers.
  ///
  /// @pre    the row was opened, and has taken part in no step
  /// @throws std::logic_error for what does not fit together, std::invalid_argument naming the
  ///         number that is wrong, cuda_error
  /// Stream: asynchronous, capturable. Memory: none.
  /// Source: policies.md 0.7 (`full_then_select`).
  template <eviction_policy P>
  void enter_async(cudaStream_t stream,
                   ledger_view<P> const& ledger,
                   P const& policy,
                   index_t layer,
                   prompt_of_row const& prompt) {
    static_assert(std::is_same_v<typename checked_prompt_policy<P>::type, P>);
    require_fits(ledger, layer, prompt);
    if constexpr (observes_attention<P>) {
      if (prompt.weights == nullptr) refuse("the policy observes attention, weights are needed");
      require_field(prompt.weights_stride >= prompt.tokens,
                    "prompt.weights_stride",
                    prompt.weights_stride,
                    "must be at least the prompt's tokens");
    }
    if (scores_keys<P> && prompt.key_norms == nullptr) {
      refuse("the policy scores keys, key_norms are needed");
    }
    if (policy.budget() == unbounded) {
      require_field(prompt.tokens <= ledger.slots - ledger.guests - ledger.max_new,
                    "prompt.tokens",
                    prompt.tokens,
                    "the policy has no budget, and a lane not so many slots");
    }
    if (prompt.tokens == 0) return;
    constexpr unsigned threads = 256;
    dim3 const grid((static_cast<unsigned>(prompt.tokens) + threads - 1) / threads,
                    static_cast<unsigned>(lanes_));
    detail::rank_prompt_kernel<<<grid, threads, 0, stream>>>(
        ledger, policy, layer, prompt, priorities_.data(), stride_, keep_.data());
    check(cudaGetLastError());
    // what is protected does not depend on the lane
    candidate_range const range = candidates_of(policy,
                                                lane_view{.newest = prompt.tokens - 1,
                                                          .occupied = prompt.tokens,
                                                          .budget = policy.budget(),
                                                          .layer = 0,
                                                          .kv_head = 0,
                                                          .seed = 0,
                                                          .ends_prompt = true});
    best_of_async(stream,
                  {.priorities = priorities_.data(),
                   .stride = stride_,
                   .lanes = lanes_,
                   .most = prompt.tokens,
                   .tokens = {.all = prompt.tokens},
                   .keep = {.each = keep_.data()},
                   .first = range.first,
                   .newest = prompt.tokens - 1 - range.last,
                   .newest_first = releases_newest_of_equals<P>,
                   .kept = kept_.data(),
                   .kept_stride = stride_,
                   .counts = counts_.data()});
    detail::enter_prompt_kernel<<<static_cast<unsigned>(lanes_), threads, 0, stream>>>(
        ledger, policy, layer, prompt, kept_.data(), stride_, counts_.data());
    check(cudaGetLastError());
  }

 private:
  static index_t checked(index_t count, char const* what) {
    require_field(count >= 1, what, count, "a device_prompt needs at least one");
    return count;
  }
  [[noreturn]] static void refuse(std::string const& what) {
    throw std::logic_error("adore: device_prompt: " + what);
  }
  template <class P>
  void require_fits(ledger_view<P> const& ledger,
                    index_t layer,
                    prompt_of_row const& prompt) const {
    if (ledger.lane_heads() != lanes_) {
      refuse("made for " + std::to_string(lanes_) + " lanes per layer, the ledger has " +
             std::to_string(ledger.lane_heads()));
    }
    if (layer < 0 || layer >= ledger.lane_layers()) {
      refuse("layer " + std::to_string(layer) + ": the ledger has lanes of " +
             std::to_string(ledger.lane_layers()) + " layers (scope model: of one for all)");
    }
    if (ledger.past.tokens > 0) refuse("released tokens may come back: enter the prompt in steps");
    require_field(prompt.row >= 0 && prompt.row < ledger.row_count,
                  "prompt.row",
                  prompt.row,
                  "there is no such row");
    require_field(prompt.tokens >= 0 && prompt.tokens <= most_,
                  "prompt.tokens",
                  prompt.tokens,
                  "must not be more than the device_prompt was made for");
  }
  std::size_t cells() const {
    return static_cast<std::size_t>(lanes_) * static_cast<std::size_t>(stride_);
  }

  index_t lanes_, most_;
  std::int64_t stride_;              // elements from lane to lane
  device_buffer<float> priorities_;  // [lane, stride]
  device_buffer<position_t> kept_;   // [lane, stride]
  device_buffer<index_t> keep_;      // [lane]
  device_buffer<index_t> counts_;    // [lane]
};

}  // namespace adore::gpu
