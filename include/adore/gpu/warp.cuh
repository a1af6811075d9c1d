// SPDX-License-Identifier: Apache-2.0
// What the kernels ask of a warp, a block and a cluster of blocks, with the PTX behind it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

inline constexpr int warp_threads = 32;
inline constexpr unsigned whole_warp = 0xFFFFFFFFU;

__device__ __forceinline__ int lane_in_warp() {
  return static_cast<int>(threadIdx.x) % warp_threads;
}
__device__ __forceinline__ int warp_in_block() {
  return static_cast<int>(threadIdx.x) / warp_threads;
}
/// The same, in a way that lets the compiler know that a warp agrees on it and all that follows.
__device__ __forceinline__ int warp_agreed() {
  return __shfl_sync(whole_warp, warp_in_block(), 0);
}
__device__ __forceinline__ int warps_in_block() {
  return static_cast<int>(blockDim.x) / warp_threads;
}

/// 2^x; 0 for -infinity.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// A hint for K/V, which a step reads once: they should not push the rest out of L2.
__device__ __forceinline__ std::uint64_t read_once_hint() {
  std::uint64_t hint;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(hint));
  return hint;
}
/// Loads that stay where they stand in the program, ahead of the branches that need them: the
/// compiler would move them behind, one round trip to memory after the other.
__device__ __forceinline__ int load_early_4(void const* from) {
  int x;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(x) : "l"(__cvta_generic_to_global(from)));
  return x;
}
__device__ __forceinline__ uint4 load_early_16(void const* from) {
  uint4 x;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(__cvta_generic_to_global(from)));
  return x;
}

// ------------------------------------------------------------------ shared memory

/// An address in this block's shared memory: half as wide as a pointer.
using shared_pointer = unsigned;
__device__ __forceinline__ shared_pointer shared_address(void const* p) {
  return static_cast<shared_pointer>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ uint4 load_shared_16(shared_pointer from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ uint2 load_shared_8(shared_pointer from) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(from) : "memory");
  return x;
}
__device__ __forceinline__ int load_shared_4(shared_pointer from) {
  int x;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
__device__ __forceinline__ void store_shared_16(shared_pointer to, uint4 x) {
  asm volatile(
      "st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
      : "memory");
}

// ------------------------------------------------------------------ bulk copies (sm_90)
// A barrier of 8 bytes in shared memory opens when a stated number of bytes has arrived.

inline constexpr int arrival_bytes = 8;
__device__ __forceinline__ void init_arrival(shared_pointer bar) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
}
/// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void publish_arrivals() {
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::
                   : "memory");
}
/// Orders this thread's writes to shared memory before copies that it starts later.
__device__ __forceinline__ void fence_before_copy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void expect_bytes(shared_pointer bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}
/// Starts a copy from global to shared memory; both and the size are multiples of 16 bytes.
__device__ __forceinline__ void copy_bulk(
    shared_pointer to, void const* from, unsigned bytes, shared_pointer bar, std::uint64_t hint) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], %4;" ::"r"(to),
      "l"(__cvta_generic_to_global(from)),
      "r"(bytes),
      "r"(bar),
      "l"(hint)
      : "memory");
}
/// The same of what will be read again.
__device__ __forceinline__ void copy_bulk(shared_pointer to,
                                          void const* from,
                                          unsigned bytes,
                                          shared_pointer bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(__cvta_generic_to_global(from)),
      "r"(bytes),
      "r"(bar)
      : "memory");
}
/// Waits until the barrier has opened for the phase of this parity.
__device__ __forceinline__ void wait_for(shared_pointer bar, unsigned parity) {
  asm volatile(
      "{\n\t.reg .pred arrived;\n\tagain:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%0], %1;\n\t"
      "@!arrived bra again;\n\t}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

/// Starts a copy of 4 bytes from global to shared memory by this thread.
__device__ __forceinline__ void copy_4_async(shared_pointer to, void const* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
/// Waits for this thread's copies of that kind.
__device__ __forceinline__ void wait_for_async_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// What belongs to neighbouring slots.
template <class T, int N>
struct neighbours {
  T of[N];
};
/// Of two or four slots: the widest loads are 8 and 16 bytes then.
///
/// @param load  `Word (unsigned)`: the word of 4 N bytes that many bytes further on
template <int N, class T, class Load>
__device__ __forceinline__ neighbours<T, N> load_neighbours(Load&& load) {
  static_assert((N == 2 || N == 4) && sizeof(T) % 4 == 0);
  std::conditional_t<N == 2, uint2, uint4> words[sizeof(T) / 4];
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / 4; ++i) words[i] = load(4 * N * i);
  neighbours<T, N> all;
  __builtin_memcpy(&all, words, sizeof(all));
  return all;
}
/// The same from global memory.
///
/// @param first  at a multiple of 4 N bytes
template <int N, class T>
__device__ __forceinline__ neighbours<T, N> neighbours_at(T const* first) {
  return load_neighbours<N, T>([&](unsigned at) {
    return *reinterpret_cast<std::conditional_t<N == 2, uint2, uint4> const*>(
        reinterpret_cast<char const*>(first) + at);
  });
}

/// The same of what is needed once per step, like K and V: it should leave L2 first.
template <int N, class T>
__device__ __forceinline__ neighbours<T, N> passing_neighbours_at(T const* first) {
  return load_neighbours<N, T>([&](unsigned at) {
    return __ldcs(reinterpret_cast<std::conditional_t<N == 2, uint2, uint4> const*>(
        reinterpret_cast<char const*>(first) + at));
  });
}
/// Writes such neighbours, a word of 4 N bytes after the other.
template <int N, class T, class Store>
__device__ __forceinline__ void store_neighbours(T* first,
                                                 neighbours<T, N> const& all,
                                                 Store&& store) {
  static_assert((N == 2 || N == 4) && sizeof(T) % 4 == 0);
  using word = std::conditional_t<N == 2, uint2, uint4>;
  word words[sizeof(T) / 4];
  __builtin_memcpy(&words, &all, sizeof(all));
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / 4; ++i) store(reinterpret_cast<word*>(first) + i, words[i]);
}
template <int N, class T>
__device__ __forceinline__ void put_neighbours(T* first, neighbours<T, N> const& all) {
  store_neighbours(first, all, [](auto* to, auto const& word) { *to = word; });
}
/// The same of passing ones.
template <int N, class T>
__device__ __forceinline__ void put_passing_neighbours(T* first, neighbours<T, N> const& all) {
  store_neighbours(first, all, [](auto* to, auto const& word) { __stcs(to, word); });
}

/// A key and the slot that it belongs to. The smallest key of a lane is released first.
struct keyed_slot {
  std::uint64_t key;
  std::int32_t slot;
};
inline constexpr std::uint64_t no_key = ~std::uint64_t{0};

/// The smaller of all threads' keys, in all threads of the warp. Keys are unique, or `no_key`.
__device__ __forceinline__ keyed_slot smallest_in_warp(keyed_slot own) {
  auto const own_high = static_cast<unsigned>(own.key >> 32U);
  unsigned const high = __reduce_min_sync(whole_warp, own_high);
  unsigned const low = __reduce_min_sync(
      whole_warp, own_high == high ? static_cast<unsigned>(own.key) : 0xFFFFFFFFU);
  std::uint64_t const key = (static_cast<std::uint64_t>(high) << 32U) | low;
  unsigned const holders = __ballot_sync(whole_warp, own.key == key);
  return {key, __shfl_sync(whole_warp, own.slot, __ffs(static_cast<int>(holders)) - 1)};
}

// ------------------------------------------------------------------ clusters (sm_90)

/// Waits for all threads of all blocks of the cluster; what they wrote is then visible.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
/// Waits only; says nothing about memory.
__device__ __forceinline__ void meet_in_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" :::);
}
/// The same variable in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* shared_of(T* mine, unsigned rank) {
  std::uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return reinterpret_cast<T*>(theirs);
}

}  // namespace adore::gpu
