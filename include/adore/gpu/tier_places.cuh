// SPDX-License-Identifier: Apache-2.0
// Which released token has which place in a tier.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu {

/// Which token is where in the tier; device memory.
struct tier_view {
  index_t places = 0;                 // of a row
  index_t* place_of = nullptr;        // [row, token]; -1: not in the tier
  position_t* token_in = nullptr;     // [row, place]; -1: nobody
  unsigned* next_place = nullptr;     // [row] places given out since the beginning
  index_t* leaving_slots = nullptr;   // [row, departure] slot that is copied in this step; -1: none
  index_t* leaving_places = nullptr;  // [row, departure]
  unsigned long long* moved = nullptr;  // tokens that were copied to the host
};

namespace detail {

/// In one thread.
inline __device__ void nobody_leaves(tier_view const& tier, index_t row) {
  index_t const first = row * most_departures;
  for (index_t i = 0; i < most_departures; ++i) tier.leaving_slots[first + i] = -1;
}

/// Gives places to the tokens of a row that the last decision released, oldest release lost first.
/// In one thread.
///
/// @pre nobody leaves
template <eviction_policy P>
__device__ void take_departures(ledger_view<P> const& ledger, tier_view const& tier, index_t row) {
  index_t const first = row * most_departures;
  std::int64_t const past = std::int64_t{row} * ledger.past.tokens;
  unsigned const departed = min(ledger.past.departed[row], unsigned{most_departures});
  for (unsigned i = 0; i < departed; ++i) {
    departure const gone = ledger.past.departures[first + static_cast<index_t>(i)];
    if (tier.place_of[past + gone.position] >= 0) continue;  // it was back, and leaves again
    index_t const place =
        static_cast<index_t>(tier.next_place[row]++ % static_cast<unsigned>(tier.places));
    position_t& holder = tier.token_in[std::int64_t{row} * tier.places + place];
    for (unsigned k = 0; departed > static_cast<unsigned>(tier.places) && k < i; ++k) {
      // fewer places than departures: who has just got this one is lost before it is copied
      index_t const earlier = first + static_cast<index_t>(k);
      if (tier.leaving_places[earlier] == place) tier.leaving_slots[earlier] = -1;
    }
    if (holder >= 0) {  // lost: it can never come back
      tier.place_of[past + holder] = -1;
      ledger.past.released[past + holder] = 0;
    }
    holder = gone.position;
    tier.place_of[past + gone.position] = place;
    tier.leaving_slots[first + static_cast<index_t>(i)] = gone.slot;
    tier.leaving_places[first + static_cast<index_t>(i)] = place;
    atomicAdd(tier.moved, 1ULL);
  }
  ledger.past.departed[row] = 0;
}

/// One row per thread.
template <eviction_policy P>
__global__ void admit_to_tier_kernel(ledger_view<P> const ledger, tier_view const tier) {
  auto const row = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= ledger.row_count) return;
  nobody_leaves(tier, row);
  row_books const& books = ledger.rows[row];
  if (books.count == 0) return;
  std::int64_t const past = std::int64_t{row} * ledger.past.tokens;
  if (books.next == 0) {  // the sequence begins
    for (index_t p = 0; p < ledger.past.tokens; ++p) tier.place_of[past + p] = -1;
    for (index_t k = 0; k < tier.places; ++k) {
      tier.token_in[std::int64_t{row} * tier.places + k] = no_position;
    }
    tier.next_place[row] = 0;
    ledger.past.departed[row] = 0;
    return;
  }
  take_departures(ledger, tier, row);
}

/// One thread: a row whose next step is not due yet.
template <eviction_policy P>
__global__ void admit_row_to_tier_kernel(ledger_view<P> const ledger,
                                         tier_view const tier,
                                         index_t const row) {
  nobody_leaves(tier, row);
  if (ledger.rows[row].next > 0) take_departures(ledger, tier, row);
}

}  // namespace detail
}  // namespace adore::gpu
