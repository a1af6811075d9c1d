// SPDX-License-Identifier: Apache-2.0
// The kernels that choose, before a step on the device, which released tokens come back: each row's
// wishes, then their shares of the step.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/order_key.hpp"

#include <cub/block/block_reduce.cuh>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu {

/// What the kernels of a rebuild work on; device memory.
struct rebuild_view {
  index_t count = 0;      // R
  index_t pool = 0;       // rows of the step for tokens that are computed again
  bool shares = false;    // ... which all sequences share
  bool restores = false;  // nobody is computed: K and V come from a tier
  bool stays = false;     // a guest stays until its place is needed
  bool competes = false;
  bool recomputes = false;  // a guest that is still wanted at its turn is computed again
  index_t period = 1;       // in steps

  index_t* ids = nullptr;           // [row, token] vocabulary ids
  position_t* wanted = nullptr;     // [row, R] best first; -1: nobody
  std::uint64_t* wishes = nullptr;  // [row, R] order keys of those who are to enter; 0: nobody
  position_t* guests = nullptr;     // [row, R] who is in the place; -1: nobody
  index_t* guest_slots = nullptr;   // [row, R] slot of the place
  unsigned long long* entered = nullptr;  // [row, R] turn in which they came, see `enter`
  index_t* phases = nullptr;              // [row] + next, modulo period: the row's turn at 0
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
  // rows that begin together take turns
  index_t const phase = books.next == 0 ? row : rebuild.phases[row];
  if (books.next == 0) {  // the sequence begins
    for (index_t p = thread; p < tokens; p += wish_threads) released[p] = 0;
    if (thread == 0) rebuild.phases[row] = phase;
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
  if ((books.next + phase) % rebuild.period != 0) return;

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
      if (!is_guest || rebuild.recomputes) rebuild.wishes[first + j] = last;
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
    // after the guests of a row that was loaded, which are numbered from 0
    rebuild.entered[first + place] =
        atomicAdd(rebuild.counts + 1, 1ULL) + static_cast<unsigned long long>(rebuild.count);
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

}  // namespace adore::gpu
