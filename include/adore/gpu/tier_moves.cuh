// SPDX-License-Identifier: Apache-2.0
// K and V of single tokens on their way between a store and a tier.
#pragma once

#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tier_places.cuh"
#include "adore/gpu/warp.cuh"

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adore::gpu::detail {

/// Copies K, then V, of one token and layer between a slot and the tier. A block per token.
template <bool ToTier, class Keys, class Values>
__device__ void move_token(
    Keys const& keys, Values const& values, index_t row, index_t slot, uint4* cells) {
  using T = typename Keys::value_type;
  index_t const chunks = chunks_of<T>(keys.channels);
  constexpr index_t per_chunk = chunk_bytes / static_cast<index_t>(sizeof(T));
  index_t const of_keys = keys.kv_heads * chunks;
  for (auto i = static_cast<index_t>(threadIdx.x); i < 2 * of_keys;
       i += static_cast<index_t>(blockDim.x)) {
    bool const is_key = i < of_keys;
    index_t const head = (is_key ? i : i - of_keys) / chunks;
    index_t const channel = (is_key ? i : i - of_keys) % chunks * per_chunk;
    auto* const in_store = reinterpret_cast<uint4*>(
        (is_key ? keys(row, head, slot) : values(row, head, slot)) + channel);
    if constexpr (ToTier) {
      cells[i] = *in_store;
    } else {
      *in_store = cells[i];
    }
  }
}

/// The cells of one layer in the tier.
struct tier_layer {
  tier_view tier;
  uint4* cells;              // [row, place, K then V, kv_head, channel]
  std::int64_t token_cells;  // of one (row, place)

  __device__ uint4* at(index_t row, index_t place) const {
    return cells + (std::int64_t{row} * tier.places + place) * token_cells;
  }
};

/// A block per row and departure.
///
/// @param first  departure of the first row
template <kv_rows Keys, kv_rows Values>
__global__ void stow_layer_kernel(tier_layer const layer,
                                  index_t const first,
                                  Keys const keys,
                                  Values const values) {
  index_t const block = first + static_cast<index_t>(blockIdx.x);
  index_t const slot = layer.tier.leaving_slots[block];
  if (slot < 0) return;
  index_t const row = block / most_departures;
  move_token<true>(keys, values, row, slot, layer.at(row, layer.tier.leaving_places[block]));
}

/// A block per token that enters.
template <kv_rows Keys, kv_rows Values>
__global__ void restore_layer_kernel(tier_layer const layer,
                                     rebuilt_tokens const entering,
                                     index_t const past_tokens,
                                     Keys const keys,
                                     Values const values) {
  auto const block = static_cast<index_t>(blockIdx.x);
  index_t const row = entering.rows[block];
  if (row < 0) return;
  std::int64_t const token = std::int64_t{row} * past_tokens + entering.positions[block];
  index_t const place = layer.tier.place_of[token];
  if (place < 0) return;
  move_token<false>(keys, values, row, entering.slots[block], layer.at(row, place));
}

/// What a row has in one layer is copied to another row.
///
/// @tparam Layer  `tier_layer`
template <class Layer>
__global__ void fork_layer_kernel(Layer const layer, index_t const from, index_t const to) {
  unsigned const places =
      min(layer.tier.next_place[from], static_cast<unsigned>(layer.tier.places));
  std::int64_t const cells = std::int64_t{places} * layer.token_cells;
  uint4 const* const source = layer.at(from, 0);
  uint4* const target = layer.at(to, 0);
  std::int64_t const apart = std::int64_t{blockDim.x} * gridDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < cells;
       i += apart) {
    target[i] = source[i];
  }
}

}  // namespace adore::gpu::detail
