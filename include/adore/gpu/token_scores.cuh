// SPDX-License-Identifier: Apache-2.0
// A controller's logits on their way to the slots of the lanes.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/token_scores.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace adore::gpu {

/// Logits of all tokens of the sequences so far, device memory.
struct scores_view {
  float const* logits = nullptr;  // [row, output, token]
  index_t outputs = 1;            // 1: the same for all lanes; layers; or layers x kv_heads
  index_t tokens = 0;             // from one output to the next: of the longest sequence
};

namespace detail {

/// One block per lane.
template <scores_tokens P>
__global__ void give_scores_kernel(ledger_view<P> const ledger,
                                   P const policy,
                                   scores_view const scores,
                                   bool const only_new) {
  auto const lane = static_cast<index_t>(blockIdx.x);
  index_t const row = lane / ledger.lanes_per_row();
  row_books const& books = ledger.rows[row];
  if (books.count == 0) return;
  index_t const in_row = lane - row * ledger.lanes_per_row();
  index_t const layer = in_row / ledger.lane_heads();
  index_t const head = in_row - layer * ledger.lane_heads();
  index_t const output = output_of(scores.outputs, ledger.layers, ledger.kv_heads, layer, head);
  float const* const logits =
      scores.logits + (static_cast<std::int64_t>(row) * scores.outputs + output) * scores.tokens;
  auto const give = [&](index_t slot) {
    position_t const p = position_in_slot(ledger.positions[ledger.cell(lane) + slot]);
    if (p < 0 || p >= books.next + books.count || p >= scores.tokens) return;
    policy.score(ledger.states_of(lane)[slot], logits[p]);
  };
  auto const first = static_cast<index_t>(threadIdx.x);
  if (only_new) {
    if (first >= books.count) return;
    index_t const place = (books.next + first) % ledger.max_new;
    index_t const slot = ledger.new_slots[static_cast<std::int64_t>(lane) * ledger.max_new + place];
    if (slot >= 0) give(slot);
    return;
  }
  for (index_t s = first; s < ledger.slots; s += static_cast<index_t>(blockDim.x)) give(s);
}

}  // namespace detail

/// Gives the policy the logits of the tokens that are in their slots, the step's new ones included;
/// before the step's attention or decision.
///
/// @param only_new  the others have theirs already (static scores)
/// @throws std::logic_error for another number of outputs, cuda_error
/// Stream: asynchronous, capturable. Memory: none.
template <scores_tokens P>
void give_scores_async(cudaStream_t stream,
                       ledger_view<P> const& ledger,
                       P const& policy,
                       scores_view const& scores,
                       bool only_new) {
  if (!is_output_count(scores.outputs, ledger.layers, ledger.kv_heads)) {
    throw std::logic_error("adore: give_scores_async: " + std::to_string(scores.outputs) +
                           " outputs; 1, " + std::to_string(ledger.layers) + " or " +
                           std::to_string(ledger.layers * ledger.kv_heads) + " are needed");
  }
  index_t const lanes = ledger.row_count * ledger.lanes_per_row();
  if (lanes == 0) return;
  unsigned const threads = only_new ? 32 : 128;
  detail::give_scores_kernel<P>
      <<<static_cast<unsigned>(lanes), threads, 0, stream>>>(ledger, policy, scores, only_new);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
