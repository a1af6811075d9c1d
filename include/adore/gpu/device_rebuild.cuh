// SPDX-License-Identifier: Apache-2.0
// Before a step on the device: which released tokens come back, by which schedule, into which
// slots. Nothing of it reaches the host, so that a captured graph replays it.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/rebuild_choice.cuh"
#include "adore/gpu/rope.cuh"
#include "adore/rebuild/rebuild_stage.hpp"
#include "adore/rebuild/rebuildable.hpp"
#include "adore/rebuild/schedule.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>

namespace adore::gpu {

/// Rotary positions of a step's tokens: of the new ones, at [row], and of those that are computed
/// again, from number `first_rebuilt` on; tokens in between are left alone.
struct step_and_rebuilt_positions {
  step_positions of_new;
  position_t const* of_rebuilt;  // [i]
  index_t rows, first_rebuilt;
  __device__ position_t operator()(index_t token) const {
    if (token < rows) return of_new(token);
    return token >= first_rebuilt ? of_rebuilt[token - first_rebuilt] : no_position;
  }
};

/// The tokens of a cache that come back, one new token per row and step, in scope model.
///
/// A step: `begin_step_async`; the model computes the new tokens of all rows and those of
/// `tokens()`; `append_rebuilt_async` and `attend_async` with `queries()` per layer;
/// `end_step_async`, then the decision.
///
/// Priorities of released tokens are what a controller has written into the ledger's `past`, or the
/// last before the release.
/// Source: policies.md 13; the same choices as `adore::rebuild_stage`.
/// Memory: device memory at construction, for each row 8 bytes, 4 per token and 44 per R, and
/// 12 for each of the pool.
template <eviction_policy P>
class device_rebuild {
 public:
  /// @param ledger  with `options.count` slots for guests and a past
  /// @throws std::invalid_argument naming what does not fit, or runs on the host only
  device_rebuild(rebuild_options const& options, ledger_view<P> const& ledger) {
    auto const require = [](bool holds, std::string const& what) {
      if (!holds) throw std::invalid_argument("adore: device_rebuild: " + what);
    };
    require(options.count >= 1 && options.count <= most_rebuilt,
            "count = " + std::to_string(options.count) + ": must lie in [1, " +
                std::to_string(most_rebuilt) + "]");
    require(ledger.reach == scope::model && ledger.max_new == 1,
            "needs scope model and one new token per step");
    require(
        ledger.guests == options.count && ledger.past.tokens > 0,
        "the ledger must have " + std::to_string(options.count) + " slots for guests, and a past");
    require(options.score == rebuilt_score::frozen, "score accumulate runs on the host only");
    require(lets_tokens_return<P>, why_no_token_returns);
    bool const competes = options.admit == rebuild_admission::compete;
    require(!competes || scores_tokens<P> || std::is_empty_v<slot_state_of<P>>,
            "under a policy that learns from attention tokens compete on the host only");
    index_t const rows = ledger.row_count;
    index_t const wishes = rows * options.count;
    view_.count = options.count;
    view_.competes = competes;
    view_.pool = wishes;
    if (auto const* const entry = std::get_if<on_entry>(&options.schedule)) {
      view_.pool = entry->pool_for(rows);
      view_.shares = true;
    }
    if (auto const* const periodic = std::get_if<every>(&options.schedule)) {
      require(periodic->steps >= 1, "every.steps must be at least 1");
      view_.period = periodic->steps;
      view_.recomputes = true;
      // rows that began together take turns; others may have to wait for their next one
      view_.pool = (rows + periodic->steps - 1) / periodic->steps * options.count;
      view_.shares = true;
    }
    view_.restores = std::holds_alternative<restore>(options.schedule);
    view_.stays = !std::holds_alternative<every_step>(options.schedule);
    mask_ = options.mask;
    auto const size = [](index_t count) { return static_cast<std::size_t>(count); };
    ids_ = device_buffer<index_t>(size(rows) * size(ledger.past.tokens));
    of_wishes_ = device_buffer<index_t>(6 * size(wishes));
    keys_ = device_buffer<std::uint64_t>(size(wishes));
    entered_ = device_buffer<unsigned long long>(size(wishes) + 3);
    of_pool_ = device_buffer<index_t>(3 * size(view_.pool) + size(rows));
    phases_ = device_buffer<index_t>(size(rows));
    check(cudaMemset(of_wishes_.data(), 0xFF, of_wishes_.bytes()));
    check(cudaMemset(entered_.data(), 0, entered_.bytes()));
    check(cudaMemset(of_pool_.data(), 0xFF, of_pool_.bytes()));
    check(cudaMemset(ids_.data(), 0, ids_.bytes()));
    check(cudaMemset(phases_.data(), 0, phases_.bytes()));
    check(cudaDeviceSynchronize());
    index_t* next = of_wishes_.data();
    for (index_t** const part : {&view_.wanted,
                                 &view_.guests,
                                 &view_.guest_slots,
                                 &view_.query_tokens,
                                 &view_.query_positions,
                                 &view_.row_of_wish}) {
      *part = next;
      next += wishes;
    }
    view_.ids = ids_.data();
    listed_ = device_buffer<index_t>(size(wishes));
    view_.listed = listed_.data();
    view_.wishes = keys_.data();
    view_.counts = entered_.data();
    view_.entered = entered_.data() + 3;
    view_.phases = phases_.data();
    view_.rows = of_pool_.data();
    view_.positions = view_.rows + view_.pool;
    view_.slots = view_.positions + view_.pool;
    view_.query_counts = view_.slots + view_.pool;
    rows_ = rows;
  }

  /// Rows that the step computes beside those of the new tokens, used or not; none if K and V are
  /// restored, see `device_tier`.
  index_t pool() const noexcept { return view_.restores ? 0 : view_.pool; }
  bool restores() const noexcept { return view_.restores; }
  rebuild_view const& view() const noexcept { return view_; }
  /// Who enters: the tokens that are computed again, or those whose K and V are restored.
  rebuilt_tokens tokens() const noexcept {
    return {view_.rows, view_.positions, view_.slots, view_.pool};
  }
  rebuilt_queries queries() const noexcept {
    if (view_.restores) return {};
    return {view_.query_counts, view_.query_tokens, view_.query_positions, view_.count, mask_};
  }

  /// Chooses who comes back; after the controller's scores of the step are in the ledger's past.
  ///
  /// @param first_token  number of the first of `tokens()` in the step's tensors
  /// @param step_ids     [token] vocabulary ids: those of the new tokens, at [row], are read; those
  ///                     of the tokens that come back are written, 0 where nobody does
  /// Stream: asynchronous, capturable. Memory: none.
  void begin_step_async(cudaStream_t stream,
                        ledger_view<P> const& ledger,
                        P const& policy,
                        index_t first_token,
                        index_t* step_ids) {
    detail::wish_kernel<P><<<static_cast<unsigned>(rows_), detail::wish_threads, 0, stream>>>(
        ledger, view_, step_ids);
    check(cudaGetLastError());
    detail::enter_kernel<P>
        <<<1, detail::enter_threads, 0, stream>>>(ledger, policy, view_, first_token, step_ids);
    check(cudaGetLastError());
  }
  /// Before the step's decision.
  void end_step_async(cudaStream_t stream, ledger_view<P> const& ledger) {
    if (!view_.competes) return;
    constexpr unsigned threads = 64;
    unsigned const blocks = (static_cast<unsigned>(rows_) + threads - 1) / threads;
    detail::admit_kernel<P><<<blocks, threads, 0, stream>>>(ledger, view_);
    check(cudaGetLastError());
  }

  /// How much has come back so far. Synchronises.
  rebuild_counts counts(cudaStream_t stream) const {
    auto const all = entered_.to_host(stream);
    return {all[0], all[1], all[2]};
  }

 private:
  rebuild_view view_;
  rebuild_mask mask_ = rebuild_mask::position_causal;
  index_t rows_ = 0;
  device_buffer<index_t> ids_;                 // [row, token]
  device_buffer<index_t> of_wishes_, listed_;  // [part, row, R], [row, R]
  device_buffer<std::uint64_t> keys_;          // [row, R]
  device_buffer<unsigned long long> entered_;  // counts, then [row, R]
  device_buffer<index_t> of_pool_;             // [part, pool], then [row]
  device_buffer<index_t> phases_;              // [row]
};

}  // namespace adore::gpu
