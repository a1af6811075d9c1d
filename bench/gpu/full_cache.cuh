// SPDX-License-Identifier: Apache-2.0
// A cache whose lanes are full, with random K/V: the state in which a policy works at every step.
#pragma once

#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/kv_view.hpp>

#include <cuda_bf16.h>

#include <cstdint>

namespace adore::bench {

/// A cheap hash, so that gigabytes are filled in no time.
__host__ __device__ inline std::uint32_t scrambled(std::uint64_t x) {
  x ^= x >> 33U;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33U;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return static_cast<std::uint32_t>(x >> 32U);
}

/// Numbers between -scale and scale.
static __global__ void fill_random(__nv_bfloat16* data,
                                   std::int64_t count,
                                   float scale,
                                   std::uint64_t seed) {
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    float const unit =
        static_cast<float>(scrambled(seed + static_cast<std::uint64_t>(i)) >> 8U) / 8388608.0F;
    data[i] = __float2bfloat16(scale * (unit - 1.0F));
  }
}
inline gpu::device_buffer<__nv_bfloat16> random_buffer(std::size_t count,
                                                       float scale,
                                                       std::uint64_t seed) {
  gpu::device_buffer<__nv_bfloat16> buffer(count);
  fill_random<<<4096, 256>>>(buffer.data(), static_cast<std::int64_t>(count), scale, seed);
  gpu::check(cudaGetLastError());
  gpu::check(cudaDeviceSynchronize());
  return buffer;
}

/// All lanes hold slots - 1 tokens, one slot is reserved; the sequences are `age` tokens older.
template <eviction_policy P>
__global__ void fill_ledger(gpu::ledger_view<P> ledger, position_t age) {
  auto const lane = static_cast<index_t>(blockIdx.x);
  index_t const tokens = ledger.slots - 1;
  position_t const next = age + tokens;
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.slots;
       s += static_cast<index_t>(blockDim.x)) {
    // the oldest token sits anywhere, as after many releases
    index_t const turned =
        (s + static_cast<index_t>(scrambled(static_cast<std::uint64_t>(lane)) % 1000003U)) %
        ledger.slots;
    ledger.positions[ledger.cell(lane) + turned] = age + s;
    if (age + s == next) ledger.new_slots[lane] = turned;
    if constexpr (observes_attention<P>) {
      slot_state_of<P> state{};
      ledger.states_of(lane)[turned] = state;
      P{}.observe(ledger.states_of(lane)[turned],
                  {},
                  {},
                  static_cast<float>(scrambled(static_cast<std::uint64_t>(lane) * 99991U +
                                               static_cast<std::uint64_t>(s)) %
                                     1024U) /
                      64.0F,
                  1);
    }
  }
  if (threadIdx.x == 0) {
    ledger.lanes[lane] = {tokens, ledger.slots, tokens};
    index_t const row = lane / ledger.lanes_per_row();
    ledger.rows[row] = {next, 1, 7};
  }
}
template <eviction_policy P>
void fill(gpu::device_ledger<P>& books) {
  auto const& view = books.view();
  fill_ledger<<<static_cast<unsigned>(view.row_count * view.lanes_per_row()), 128>>>(view, 99);
  gpu::check(cudaGetLastError());
  gpu::check(cudaDeviceSynchronize());
}

}  // namespace adore::bench
