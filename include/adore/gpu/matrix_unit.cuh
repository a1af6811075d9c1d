// SPDX-License-Identifier: Apache-2.0
// The instruction by which tensor cores multiply, for each type of element.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace adore::gpu {

/// What the tensor cores are fed for elements of type T.
///
/// Products are S^T = K Q^T (slots x queries) and O^T = V^T P^T (channels x queries). In the
/// instruction's layouts thread (g, t) = (lane / 4, lane % 4) holds of S^T and O^T the rows g and
/// g + 8 and the columns 2t and 2t + 1. Which channel is which summand of a dot product is free, so
/// each thread reads 16 neighbouring bytes of a key; the same channels of the queries meet them.
template <class T>
struct matrix_unit;

namespace detail {

/// 16-bit elements: m16n8k16.
template <class T>
struct matrix_unit_16 {
  static constexpr int elements_per_word = 2;
  /// Slot that a thread's n-th value row (of 4) stands for.
  static __device__ int value_slot(int t, int n) { return 2 * t + (n & 1) + 8 * (n >> 1); }

  static __device__ __forceinline__ unsigned low_halves(unsigned a, unsigned b) {
    return __byte_perm(a, b, 0x5410);
  }
  static __device__ __forceinline__ unsigned high_halves(unsigned a, unsigned b) {
    return __byte_perm(a, b, 0x7632);
  }
  /// Transposes an 8 x 8 matrix of 16-bit elements that is spread over the warp.
  static __device__ __forceinline__ unsigned transpose(unsigned rows) {
    unsigned columns;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
    return columns;
  }
};

}  // namespace detail

template <>
struct matrix_unit<__nv_bfloat16> : detail::matrix_unit_16<__nv_bfloat16> {
  static __device__ __forceinline__ void multiply(
      float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
  static __device__ __forceinline__ float low(unsigned word) {
    return __uint_as_float(word << 16U);
  }
  static __device__ __forceinline__ float high(unsigned word) {
    return __uint_as_float(word & 0xFFFF0000U);
  }
};

template <>
struct matrix_unit<__half> : detail::matrix_unit_16<__half> {
  static __device__ __forceinline__ void multiply(
      float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
  static __device__ __forceinline__ float low(unsigned word) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
  }
  static __device__ __forceinline__ float high(unsigned word) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16U)));
  }
};

/// 32-bit elements: m16n8k8 of TF32, each factor split into two such numbers, so that a product is
/// exact to about 2^-21.
template <>
struct matrix_unit<float> {
  static constexpr int elements_per_word = 1;
  static __device__ int value_slot(int t, int n) { return t + 4 * n; }

  struct split {
    unsigned high, low;
  };
  static __device__ __forceinline__ split split_of(unsigned word) {
    split parts;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(parts.high) : "f"(__uint_as_float(word)));
    float const rest = __uint_as_float(word) - __uint_as_float(parts.high);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(parts.low) : "f"(rest));
    return parts;
  }
  static __device__ __forceinline__ void multiply_tf32(
      float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ void multiply(
      float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    split const x0 = split_of(a0), x1 = split_of(a1), x2 = split_of(a2), x3 = split_of(a3);
    split const y0 = split_of(b0), y1 = split_of(b1);
    multiply_tf32(c, x0.low, x1.low, x2.low, x3.low, y0.high, y1.high);
    multiply_tf32(c, x0.high, x1.high, x2.high, x3.high, y0.low, y1.low);
    multiply_tf32(c, x0.high, x1.high, x2.high, x3.high, y0.high, y1.high);
  }
};

}  // namespace adore::gpu
