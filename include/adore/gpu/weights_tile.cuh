// SPDX-License-Identifier: Apache-2.0
// How keys and query rows lie in the products that weights are formed from: S^T = K Q^T, sixteen
// slots by eight query rows.
#pragma once

#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>

namespace adore::gpu::detail {

inline constexpr index_t weight_tile_slots = 16;   // rows of a product
inline constexpr index_t weight_tile_queries = 8;  // and its columns

/// Keys of 16 slots, or a part of their channels: thread (g, t) holds bytes [64c + 16t, +16) of the
/// rows g and g + 8. Which channel is which summand of a dot product is free, so 16 neighbouring
/// bytes serve as two fragments, and queries are read in the same pattern.
template <int Chunks>
struct keys_in_registers {
  uint4 words[2][static_cast<std::size_t>(Chunks)];

  /// @param from  start of the two rows, or of the part
  __device__ __forceinline__ void load(char const* const (&from)[2], int first_chunk, int t) {
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {  // read once: first to leave the caches
        words[r][c] =
            __ldcs(reinterpret_cast<uint4 const*>(from[r] + 64 * (first_chunk + c) + 16 * t));
      }
    }
  }
};

/// How the query rows of a group are put in the eight columns of a product: query j, head h of
/// 2^bits >= group is column (j << bits) + h. Columns of missing heads are zero.
struct query_columns {
  index_t group, bits;

  explicit query_columns(index_t heads_per_kv_head) : group(heads_per_kv_head), bits(0) {
    while ((1 << bits) < group) ++bits;
  }
  __device__ index_t query(index_t column) const { return column >> bits; }
  __device__ index_t head(index_t column) const { return column & ((1 << bits) - 1); }
  __device__ index_t tiles(index_t queries) const {
    return ((queries << bits) + weight_tile_queries - 1) / weight_tile_queries;
  }
};

}  // namespace adore::gpu::detail
