// SPDX-License-Identifier: Apache-2.0
// Sixteen keys times eight queries, and sixteen values times eight rows of probabilities, by the
// tensor cores.
#pragma once

#include "adore/gpu/matrix_unit.cuh"
#include "adore/gpu/warp.cuh"

namespace adore::gpu {

inline constexpr int tile_slots = 16;   // slots that a warp multiplies at once
inline constexpr int tile_queries = 8;  // query rows per product

/// How a row of `Channels` elements is cut up: a key in chunks of 64 bytes (4 threads x 16), a
/// value in units of 128 bytes (8 threads x 16) and at most one of 64 (8 x 8).
template <class T, int Channels>
struct row_cut {
  static constexpr int bytes = Channels * static_cast<int>(sizeof(T));
  static_assert(bytes % 64 == 0, "adore: a head must have a multiple of 64 bytes");
  static constexpr int chunks = bytes / 64;
  static constexpr int units = bytes / 128;
  static constexpr bool has_half_unit = bytes % 128 != 0;
  static constexpr int tiles = Channels / 16;  // of 16 channels
};

/// Eight query rows: thread (g, t) has of row g the bytes [64c + 16t, +16) of each chunk c.
template <class T, int Channels>
struct query_tile {
  uint4 words[row_cut<T, Channels>::chunks];

  /// @param row  start of query row g in global memory; nullptr: zeros
  __device__ __forceinline__ void load(char const* row, int t) {
#pragma unroll
    for (int c = 0; c < row_cut<T, Channels>::chunks; ++c) {
      words[c] = row == nullptr ? uint4{0, 0, 0, 0}
                                : *reinterpret_cast<uint4 const*>(row + 64 * c + 16 * t);
    }
  }
  /// The same from shared memory.
  __device__ __forceinline__ void load(shared_pointer row, bool there, int t) {
#pragma unroll
    for (int c = 0; c < row_cut<T, Channels>::chunks; ++c) {
      words[c] =
          there ? load_shared_16(row + static_cast<unsigned>(64 * c + 16 * t)) : uint4{0, 0, 0, 0};
    }
  }
};

/// scores[n][slot, query] = products of 16 keys in shared memory, [slot, channel], and the queries.
template <class T, int Channels, int QueryTiles>
__device__ __forceinline__ void multiply_keys(float (&scores)[QueryTiles][4],
                                              shared_pointer keys,
                                              query_tile<T, Channels> const (&queries)[QueryTiles],
                                              int g,
                                              int t) {
  using unit = matrix_unit<T>;
  using cut = row_cut<T, Channels>;
  float odd[QueryTiles][4] = {};  // a second chain of sums, since each product takes 33 cycles
#pragma unroll
  for (int c = 0; c < cut::chunks; ++c) {
    uint4 const a = load_shared_16(keys + static_cast<unsigned>(g * cut::bytes + 64 * c + 16 * t));
    uint4 const b =
        load_shared_16(keys + static_cast<unsigned>((g + 8) * cut::bytes + 64 * c + 16 * t));
#pragma unroll
    for (int n = 0; n < QueryTiles; ++n) {
      uint4 const q = queries[n].words[c];
      unit::multiply(scores[n], a.x, b.x, a.y, b.y, q.x, q.y);
      unit::multiply(odd[n], a.z, b.z, a.w, b.w, q.z, q.w);
    }
  }
#pragma unroll
  for (int n = 0; n < QueryTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] += odd[n][i];
  }
}

/// The probabilities of 16 slots and 8 query rows as the second factor of O^T = V^T P^T.
template <class T>
struct probability_tile {
  // 16-bit elements: the rounded probability and what rounding left, so that the sum is exact to
  // about 2^-17 (bf16) or 2^-22 (half). 32-bit: the four values of slots t, t + 4, t + 8, t + 12.
  unsigned words[4];

  /// @param p  as `multiply_keys` lays scores out: (slot g, query 2t), (g, 2t+1), (g+8, 2t), ...
  __device__ __forceinline__ void set(float const (&p)[4]) {
    using unit = matrix_unit<T>;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        unsigned const rounded = unit::pack(p[2 * r], p[2 * r + 1]);
        unsigned const rest =
            unit::pack(p[2 * r] - unit::low(rounded), p[2 * r + 1] - unit::high(rounded));
        words[r] = unit::transpose(rounded);
        words[2 + r] = unit::transpose(rest);
      }
    } else {
      int const g = lane_in_warp() / 4;
      int const t = lane_in_warp() % 4;
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // slot t + 4n, query g
        int const holder = (t + 4 * (n & 1)) * 4 + g / 2;
        float const even = __shfl_sync(whole_warp, p[2 * (n >> 1)], holder);
        float const odd = __shfl_sync(whole_warp, p[2 * (n >> 1) + 1], holder);
        words[n] = __float_as_uint(g % 2 == 0 ? even : odd);
      }
    }
  }
};

/// O^T: in tile i the channels `first_channel(g, i)` and the next one, for the queries 2t and 2t
/// + 1.
template <class T, int Channels>
struct output_tile {
  using cut = row_cut<T, Channels>;
  float sums[cut::tiles][4] = {};

  static __device__ __forceinline__ int first_channel(int g, int i) {
    constexpr int per_unit = 16 / static_cast<int>(sizeof(T)) / 2;  // tiles of a whole unit
    constexpr int whole = cut::units * per_unit;
    constexpr int width = static_cast<int>(sizeof(T));
    return i < whole ? (128 * (i / per_unit) + 16 * g) / width + 2 * (i % per_unit)
                     : (128 * cut::units + 8 * g) / width + 2 * (i - whole);
  }

  /// Adds the products of one tile of 16 channels, whose words in the four value rows are given.
  __device__ __forceinline__ void add(int i,
                                      unsigned const (&first)[4],
                                      unsigned const (&second)[4],
                                      probability_tile<T> const& p) {
    using unit = matrix_unit<T>;
    if constexpr (sizeof(T) == 2) {  // `first` holds both channels, `second` is not used
      unsigned const a0 = unit::low_halves(first[0], first[1]);
      unsigned const a1 = unit::high_halves(first[0], first[1]);
      unsigned const a2 = unit::low_halves(first[2], first[3]);
      unsigned const a3 = unit::high_halves(first[2], first[3]);
      unit::multiply(sums[i], a0, a1, a2, a3, p.words[0], p.words[1]);
      unit::multiply(sums[i], a0, a1, a2, a3, p.words[2], p.words[3]);
    } else {
      unit::multiply(sums[i], first[0], second[0], first[1], second[1], p.words[0], p.words[1]);
      unit::multiply(sums[i], first[2], second[2], first[3], second[3], p.words[2], p.words[3]);
    }
  }

  /// Writes those of query 2t + e.
  ///
  /// @param row  [channel]
  __device__ __forceinline__ void store(float* row, int e, int g, int /*t*/) const {
#pragma unroll
    for (int i = 0; i < cut::tiles; ++i) {
      *reinterpret_cast<float2*>(row + first_channel(g, i)) = {sums[i][e], sums[i][2 + e]};
    }
  }
  /// Multiplies the columns of the queries 2t and 2t + 1.
  __device__ __forceinline__ void scale(float even, float odd) {
#pragma unroll
    for (int i = 0; i < cut::tiles; ++i) {
      sums[i][0] *= even;
      sums[i][1] *= odd;
      sums[i][2] *= even;
      sums[i][3] *= odd;
    }
  }
};

/// outputs[n] += products of 16 values in shared memory, [slot, channel], and probabilities.
template <class T, int Channels, int QueryTiles>
__device__ __forceinline__ void multiply_values(
    output_tile<T, Channels> (&outputs)[QueryTiles],
    shared_pointer values,
    probability_tile<T> const (&probabilities)[QueryTiles],
    int g,
    int t) {
  using cut = row_cut<T, Channels>;
  constexpr int step = sizeof(T) == 2 ? 1 : 2;  // words of a tile in a thread
  shared_pointer rows[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    rows[r] = values + static_cast<unsigned>(matrix_unit<T>::value_slot(t, r) * cut::bytes);
  }
  auto const add = [&](int i, unsigned const(&first)[4], unsigned const(&second)[4]) {
#pragma unroll
    for (int n = 0; n < QueryTiles; ++n) outputs[n].add(i, first, second, probabilities[n]);
  };
#pragma unroll
  for (int u = 0; u < cut::units; ++u) {
    uint4 v[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      v[r] = load_shared_16(rows[r] + static_cast<unsigned>(128 * u + 16 * g));
    }
    if constexpr (step == 1) {
      add(4 * u, {v[0].x, v[1].x, v[2].x, v[3].x}, {});
      add(4 * u + 1, {v[0].y, v[1].y, v[2].y, v[3].y}, {});
      add(4 * u + 2, {v[0].z, v[1].z, v[2].z, v[3].z}, {});
      add(4 * u + 3, {v[0].w, v[1].w, v[2].w, v[3].w}, {});
    } else {
      add(2 * u, {v[0].x, v[1].x, v[2].x, v[3].x}, {v[0].y, v[1].y, v[2].y, v[3].y});
      add(2 * u + 1, {v[0].z, v[1].z, v[2].z, v[3].z}, {v[0].w, v[1].w, v[2].w, v[3].w});
    }
  }
  if constexpr (cut::has_half_unit) {
    uint2 v[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      v[r] = load_shared_8(rows[r] + static_cast<unsigned>(128 * cut::units + 8 * g));
    }
    constexpr int i = cut::units * 4 / step;
    add(i, {v[0].x, v[1].x, v[2].x, v[3].x}, {v[0].y, v[1].y, v[2].y, v[3].y});
    if constexpr (step == 1) add(i + 1, {v[0].y, v[1].y, v[2].y, v[3].y}, {});
  }
}

}  // namespace adore::gpu
