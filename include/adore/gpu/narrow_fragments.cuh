// SPDX-License-Identifier: Apache-2.0
// Sixteen keys times up to four queries, and sixteen values times four rows of probabilities, by
// the tensor cores. Decoding a token of a model with up to four query heads per KV head leaves half
// of the columns of `fragments.cuh` empty; here they take half of the channels instead, which also
// spares most of the moves between registers.
#pragma once

#include "adore/gpu/fragments.cuh"
#include "adore/gpu/warp.cuh"

namespace adore::gpu {

inline constexpr int narrow_rows = 4;  // query rows per product

/// Four query rows. In the instruction's layout thread (g, t) = (lane / 4, lane % 4) has column g:
/// the row g % 4, and of each 16 bytes [64c + 16t, +16) the words 0 and 2 if g < 4, else 1 and 3.
template <class T, int Channels>
struct narrow_queries {
  static_assert(sizeof(T) == 2);
  unsigned words[row_cut<T, Channels>::chunks][2];

  /// @param row  start of query row g % 4; nullptr: zeros
  __device__ __forceinline__ void load(char const* row, int t) {
    take(t, [&](int at) {
      return row == nullptr ? uint4{0, 0, 0, 0} : *reinterpret_cast<uint4 const*>(row + at);
    });
  }
  /// The same from shared memory.
  __device__ __forceinline__ void load(shared_pointer row, bool there, int t) {
    take(t, [&](int at) {
      return there ? load_shared_16(row + static_cast<unsigned>(at)) : uint4{0, 0, 0, 0};
    });
  }

 private:
  template <class Load>
  __device__ __forceinline__ void take(int t, Load&& load) {
    bool const odd = lane_in_warp() >= 16;  // g >= 4
#pragma unroll
    for (int c = 0; c < row_cut<T, Channels>::chunks; ++c) {
      uint4 const x = load(64 * c + 16 * t);
      words[c][0] = odd ? x.y : x.x;
      words[c][1] = odd ? x.w : x.z;
    }
  }
};

/// scores[slot, query] = products of 16 keys in shared memory, [slot, channel], and the queries:
/// thread (g, t) gets (slot g, query 2t'), (g, 2t' + 1), (g + 8, 2t'), (g + 8, 2t' + 1), t' = t
/// % 2.
///
/// The rows g and g + 8 of a product are the even and the odd words of one key, so that a load of
/// 16 bytes is a factor as it stands; the former meet columns 0 to 3, the latter columns 4 to 7.
template <class T, int Channels>
__device__ __forceinline__ void multiply_keys(float (&scores)[1][4],
                                              shared_pointer keys,
                                              narrow_queries<T, Channels> const (&queries)[1],
                                              int g,
                                              int t) {
  using cut = row_cut<T, Channels>;
  uint4 a[2][cut::chunks];  // all on their way before the first is used
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // slots g, then g + 8
#pragma unroll
    for (int c = 0; c < cut::chunks; ++c) {
      a[half][c] = load_shared_16(
          keys + static_cast<unsigned>((g + 8 * half) * cut::bytes + 64 * c + 16 * t));
    }
  }
  float products[2][2][4] = {};  // two chains of sums per half, since each product takes 33 cycles
#pragma unroll
  for (int c = 0; c < cut::chunks; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 const x = a[half][c];
      matrix_unit<T>::multiply(products[half][c % 2],
                               x.x,
                               x.y,
                               x.z,
                               x.w,
                               queries[0].words[c][0],
                               queries[0].words[c][1]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float const even = products[half][0][e] + products[half][1][e];  // column 2t + e
      float const odd = products[half][0][2 + e] + products[half][1][2 + e];
      float const mine = t < 2 ? even : odd;
      scores[0][2 * half + e] = mine + __shfl_xor_sync(whole_warp, mine, 2);
    }
  }
}

/// The probabilities of 16 slots and 4 query rows. Column n < 4 of a factor is row n for the even
/// channels, column n + 4 the same row for the odd ones.
template <class T>
struct narrow_probabilities {
  // the rounded probability and what rounding left, see `probability_tile`
  unsigned words[2][2][2];  // [slots 0 to 7 or 8 to 15, rounded or rest, slot 2t or 2t + 1]

  /// @param p  as `multiply_keys` lays scores out
  __device__ __forceinline__ void set(float const (&p)[4]) {
    using unit = matrix_unit<T>;
    bool const odd = lane_in_warp() >= 16;
    unsigned const first = odd ? 0x1044U : 0x4410U;   // byte selectors: a half, and zeros for the
    unsigned const second = odd ? 0x3244U : 0x4432U;  // channel that the column is not for
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      unsigned const rounded = unit::pack(p[2 * r], p[2 * r + 1]);
      unsigned const rest =
          unit::pack(p[2 * r] - unit::low(rounded), p[2 * r + 1] - unit::high(rounded));
      unsigned const of_slots[2] = {unit::transpose(rounded), unit::transpose(rest)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[r][i][0] = __byte_perm(of_slots[i], 0, first);
        words[r][i][1] = __byte_perm(of_slots[i], 0, second);
      }
    }
  }
};

/// In tile i the channels 32i + 4g + (t / 2) and the second next one, for the queries 2t' and
/// 2t' + 1.
template <class T, int Channels>
struct narrow_output {
  static_assert(Channels % 32 == 0);
  static constexpr int tiles = Channels / 32;
  float sums[tiles][4] = {};

  __device__ __forceinline__ void scale(float even, float odd) {
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      sums[i][0] *= even;
      sums[i][1] *= odd;
      sums[i][2] *= even;
      sums[i][3] *= odd;
    }
  }
  /// Writes those of query 2t' + e.
  ///
  /// @param row  [channel]
  __device__ __forceinline__ void store(float* row, int e, int g, int t) const {
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      float* const to = row + 32 * i + 4 * g + t / 2;
      to[0] = sums[i][e];
      to[2] = sums[i][2 + e];
    }
  }
};

/// outputs += products of 16 values in shared memory, [slot, channel], and probabilities. A word
/// holds two channels of a slot, which are two neighbouring summands: each column's probability
/// stands at one of them, and a zero at the other.
template <class T, int Channels>
__device__ __forceinline__ void multiply_values(narrow_output<T, Channels> (&outputs)[1],
                                                shared_pointer values,
                                                narrow_probabilities<T> const (&probabilities)[1],
                                                int g,
                                                int t) {
  using cut = row_cut<T, Channels>;
  constexpr int tiles = narrow_output<T, Channels>::tiles;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    shared_pointer const rows =
        values + static_cast<unsigned>((2 * t + 8 * r) * cut::bytes + 8 * g);
    auto const& p = probabilities[0].words[r];
    uint2 a[tiles], b[tiles];
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      a[i] = load_shared_8(rows + static_cast<unsigned>(64 * i));
      b[i] = load_shared_8(rows + static_cast<unsigned>(cut::bytes + 64 * i));
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {  // neighbours in this order do not wait for each other
#pragma unroll
      for (int i = 0; i < tiles; ++i) {
        matrix_unit<T>::multiply(
            outputs[0].sums[i], a[i].x, a[i].y, b[i].x, b[i].y, p[part][0], p[part][1]);
      }
    }
  }
}

}  // namespace adore::gpu
