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
#include "adore/gpu/rope.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/order_key.hpp"
#include "adore/rebuild/rebuild_stage.hpp"
#include "adore/rebuild/schedule.hpp"

#include <cub/block/block_reduce.cuh>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace adore::gpu {

/// What the kernels of a rebuild work on; device memory.
struct rebuild_view {
  index_t count = 0;      // R
  index_t pool = 0;       // rows of the step for tokens that are computed again
  bool shares = false;    // ... which all sequences share
  bool restores = false;  // nobody is computed: K and V come from a tier
  bool stays = false;     // a guest stays until its place is needed
  bool competes = false;
  index_t period = 1;

  index_t* ids = nullptr;           // [row, token] vocabulary ids
  position_t* wanted = nullptr;     // [row, R] best first; -1: nobody
  std::uint64_t* wishes = nullptr;  // [row, R] order keys of those who are to enter; 0: nobody
  position_t* guests = nullptr;     // [row, R] who is in the place; -1: nobody
  index_t* guest_slots = nullptr;   // [row, R] slot of the place
  unsigned long long* entered = nullptr;  // [row, R] when, counted in entries
  index_t* row_of_wish = nullptr;         // [row, R] row of the step that computes it; -1: none
  index_t* listed = nullptr;              // [row, R] numbers of the wishes, in no order

  index_t* rows = nullptr;                // [pool], of `rebuilt_tokens`
  position_t* positions = nullptr;        // [pool]
  index_t* slots = nullptr;               // [pool]
  index_t* query_counts = nullptr;        // [row], of `rebuilt_queries`
  index_t* query_tokens = nullptr;        // [row, R]
  position_t* query_positions = nullptr;  // [row, R]
  unsigned long long* counts = nullptr;   // computed, entered, deferred
};

namespace detail {

inline constexpr int wish_threads = 256;
struct keep_larger {
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const {
    return a > b ? a : b;
  }
};

/// One row per block: hears the new token, and finds the R released tokens of the highest order.
template <class P>
__global__ void __launch_bounds__(wish_threads) wish_kernel(ledger_view<P> const ledger,
                                                            rebuild_view const rebuild,
                                                            index_t const* const step_ids) {
  using reduce = cub::BlockReduce<std::uint64_t, wish_threads>;
  __shared__ typename reduce::TempStorage memory;
  __shared__ std::uint64_t found;
  auto const row = static_cast<index_t>(blockIdx.x);
  auto const thread = static_cast<index_t>(threadIdx.x);
  index_t const first = row * rebuild.count;
  row_books const books = ledger.rows[row];
  index_t const tokens = ledger.past.tokens;
  std::uint8_t* const released = ledger.past.released + std::int64_t{row} * tokens;
  float const* const priorities = ledger.past.priorities + std::int64_t{row} * tokens;
  position_t const end = min(books.next, tokens);
  if (thread == 0) rebuild.query_counts[row] = 0;
  for (index_t j = thread; j < rebuild.count; j += wish_threads) {
    rebuild.wishes[first + j] = 0;
    rebuild.wanted[first + j] = no_position;
  }
  if (books.count == 0) return;
  if (books.next == 0) {  // the sequence begins
    for (index_t p = thread; p < tokens; p += wish_threads) released[p] = 0;
  }
  if (thread == 0 && books.next < tokens) {
    rebuild.ids[std::int64_t{row} * tokens + books.next] = step_ids[row];
  }
  position_t* const positions = ledger.positions + ledger.cell(ledger.lane(row, 0, 0));
  if (books.next == 0 || !rebuild.stays) {  // nobody is there, or all leave
    for (index_t j = thread; j < rebuild.count; j += wish_threads) {
      if (books.next == 0) rebuild.guest_slots[first + j] = ledger.slots - 1 - j;
      rebuild.guests[first + j] = no_position;
      if (!rebuild.competes) positions[rebuild.guest_slots[first + j]] = no_guest;
    }
  }
  bool const full = ledger.lanes[ledger.lane(row, 0, 0)].extent == ledger.slots;
  if (rebuild.competes && full && thread < warp_threads) {
    // who lost has left its slot free, who won has taken a place's: new places are what is free
    index_t places = 0;
    for (index_t s = thread; s - thread < ledger.slots; s += warp_threads) {
      bool const here =
          s < ledger.slots && (positions[s] == no_position || positions[s] == no_guest);
      unsigned const all = __ballot_sync(whole_warp, here);
      index_t const place = places + __popc(all & ((1U << static_cast<unsigned>(thread)) - 1U));
      if (here && place < rebuild.count) {
        rebuild.guest_slots[first + place] = s;
        positions[s] = no_guest;
      } else if (here) {
        positions[s] = no_position;
      }
      places += __popc(all);
    }
  }
  __syncthreads();
  if ((books.next + row) % rebuild.period != 0) return;

  std::uint64_t last = ~std::uint64_t{0};
  for (index_t j = 0; j < rebuild.count; ++j) {
    std::uint64_t best = 0;
    for (index_t p = thread; p < end; p += wish_threads) {
      if (released[p] == 0) continue;
      std::uint64_t const key = order_key(priorities[p], p);
      if (key < last && key > best) best = key;
    }
    best = reduce(memory).Reduce(best, keep_larger{});
    if (thread == 0) found = best;
    __syncthreads();
    last = found;
    __syncthreads();
    if (last == 0) return;
    if (thread == 0) {
      auto const p = static_cast<position_t>(static_cast<std::uint32_t>(last));
      bool is_guest = false;
      for (index_t g = 0; g < rebuild.count; ++g) {
        is_guest = is_guest || rebuild.guests[first + g] == p;
      }
      rebuild.wanted[first + j] = p;
      // a guest of `every` is computed again where it is
      if (!is_guest || rebuild.period > 1) rebuild.wishes[first + j] = last;
    }
  }
}

inline constexpr int enter_threads = 1024;

/// Where token p goes among the row's places: where it is, else an empty one, else that of the
/// guest who has been there longest and is no longer wanted. There is always one.
inline __device__ index_t place_for(rebuild_view const& rebuild, index_t row, position_t p) {
  index_t const first = row * rebuild.count;
  index_t place = -1;
  for (index_t g = 0; g < rebuild.count; ++g) {
    if (rebuild.guests[first + g] == p) return g;
    if (rebuild.guests[first + g] == no_position && place < 0) place = g;
  }
  if (place >= 0) return place;
  for (index_t g = 0; g < rebuild.count; ++g) {
    bool is_wanted = false;
    for (index_t k = 0; k < rebuild.count; ++k) {
      is_wanted = is_wanted || rebuild.wanted[first + k] == rebuild.guests[first + g];
    }
    if (is_wanted) continue;
    if (place < 0 || rebuild.entered[first + g] < rebuild.entered[first + place]) place = g;
  }
  return place;
}

/// Row number i of the step computes the token that the row wants j-th.
template <class P>
__device__ void enter(ledger_view<P> const& ledger,
                      P const& policy,
                      rebuild_view const& rebuild,
                      index_t row,
                      index_t j,
                      index_t i,
                      index_t first_token,
                      index_t* step_ids) {
  index_t const first = row * rebuild.count;
  position_t const p = rebuild.wanted[first + j];
  index_t const place = place_for(rebuild, row, p);
  index_t const slot = rebuild.guest_slots[first + place];
  std::int64_t const past = std::int64_t{row} * ledger.past.tokens + p;
  if (rebuild.guests[first + place] != p) {
    rebuild.guests[first + place] = p;
    rebuild.entered[first + place] = atomicAdd(rebuild.counts + 1, 1ULL);
    index_t const lane = ledger.lane(row, 0, 0);
    ledger.positions[ledger.cell(lane) + slot] = guest_mark(p);
    if constexpr (scores_tokens<P>) {
      slot_state_of<P> state{};
      policy.score(state, ledger.past.priorities[past]);
      ledger.states_of(lane)[slot] = state;
    }
    if (ledger.lanes[lane].extent < ledger.slots) ledger.lanes[lane].extent = ledger.slots;
  }
  rebuild.rows[i] = row;
  rebuild.positions[i] = p;
  rebuild.slots[i] = slot;
  if (rebuild.restores) return;
  step_ids[first_token + i] = rebuild.ids[past];
  index_t const query = rebuild.query_counts[row]++;
  rebuild.query_tokens[first + query] = first_token + i;
  rebuild.query_positions[first + query] = p;
}

/// One block: shares the rows of the step out among the wishes, the highest key first.
template <class P>
__global__ void __launch_bounds__(enter_threads) enter_kernel(ledger_view<P> const ledger,
                                                              P const policy,
                                                              rebuild_view const rebuild,
                                                              index_t const first_token,
                                                              index_t* const step_ids) {
  __shared__ index_t count;
  __shared__ unsigned chosen;
  auto const thread = static_cast<index_t>(threadIdx.x);
  index_t const wishes = ledger.row_count * rebuild.count;
  for (index_t i = thread; i < rebuild.pool; i += enter_threads) {
    rebuild.rows[i] = -1;
    rebuild.positions[i] = no_position;
    if (!rebuild.restores) step_ids[first_token + i] = 0;
  }
  if (thread == 0) {
    count = 0;
    chosen = 0;
  }
  __syncthreads();
  for (index_t w = thread; w < wishes; w += enter_threads) {
    rebuild.row_of_wish[w] = rebuild.shares || rebuild.wishes[w] == 0 ? -1 : w;
    if (rebuild.wishes[w] == 0) continue;
    index_t const place = atomicAdd(&count, 1);
    if (rebuild.shares) rebuild.listed[place] = w;
  }
  __syncthreads();
  if (rebuild.shares) {
    for (index_t k = thread; k < count; k += enter_threads) {
      index_t const w = rebuild.listed[k];
      std::uint64_t const key = rebuild.wishes[w];
      index_t better = 0;  // wishes of a higher key, or of an earlier row with the same
      for (index_t other = 0; other < count; ++other) {
        index_t const x = rebuild.listed[other];
        std::uint64_t const its = rebuild.wishes[x];
        better += its > key || (its == key && x < w) ? 1 : 0;
      }
      if (better < rebuild.pool) rebuild.row_of_wish[w] = better;
    }
    __syncthreads();
  }
  for (index_t row = thread; row < ledger.row_count; row += enter_threads) {
    unsigned here = 0;
    for (index_t j = 0; j < rebuild.count; ++j) {
      index_t const i = rebuild.row_of_wish[row * rebuild.count + j];
      if (i < 0) continue;
      enter(ledger, policy, rebuild, row, j, i, first_token, step_ids);
      ++here;
    }
    if (here > 0) atomicAdd(&chosen, here);
  }
  __syncthreads();
  if (thread == 0) {
    rebuild.counts[0] += rebuild.restores ? 0 : chosen;
    rebuild.counts[2] += static_cast<unsigned long long>(count) - chosen;
  }
}

/// One row per thread: its guests become tokens of the lane like any other.
template <class P>
__global__ void admit_kernel(ledger_view<P> const ledger, rebuild_view const rebuild) {
  auto const row = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= ledger.row_count || ledger.rows[row].count == 0) return;
  index_t const lane = ledger.lane(row, 0, 0);
  index_t admitted = 0;
  for (index_t g = row * rebuild.count; g < (row + 1) * rebuild.count; ++g) {
    position_t const p = rebuild.guests[g];
    if (p < 0) continue;
    ledger.positions[ledger.cell(lane) + rebuild.guest_slots[g]] = p;
    ledger.past.released[std::int64_t{row} * ledger.past.tokens + p] = 0;
    rebuild.guests[g] = no_position;
    ++admitted;
  }
  ledger.lanes[lane].occupied += admitted;
}

}  // namespace detail

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
/// Memory: device memory at construction, for each row 5 bytes per token and 44 per R.
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
    bool const competes = options.admit == rebuild_admission::compete;
    require(!competes || scores_tokens<P> || std::is_empty_v<slot_state_of<P>>,
            "under a policy that learns from attention tokens compete on the host only");
    index_t const rows = ledger.row_count;
    index_t const wishes = rows * options.count;
    view_.count = options.count;
    view_.competes = competes;
    view_.pool = wishes;
    if (auto const* const entry = std::get_if<on_entry>(&options.schedule)) {
      view_.pool = entry->pool > 0 ? entry->pool : std::max(rows / 4, 1);
      view_.shares = true;
    }
    if (auto const* const periodic = std::get_if<every>(&options.schedule)) {
      require(periodic->steps >= 1, "every.steps must be at least 1");
      view_.period = periodic->steps;
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
    check(cudaMemset(of_wishes_.data(), 0xFF, of_wishes_.bytes()));
    check(cudaMemset(entered_.data(), 0, entered_.bytes()));
    check(cudaMemset(of_pool_.data(), 0xFF, of_pool_.bytes()));
    check(cudaMemset(ids_.data(), 0, ids_.bytes()));
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
  /// Who is back in a row, ascending. Synchronises.
  std::vector<position_t> guests(cudaStream_t stream, index_t row) const {
    auto const all = of_wishes_.to_host(stream);
    auto const first = all.begin() + (static_cast<std::ptrdiff_t>(rows_) + row) * view_.count;
    std::vector<position_t> back(first, first + view_.count);
    std::erase(back, no_position);
    std::sort(back.begin(), back.end());
    return back;
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
};

}  // namespace adore::gpu
