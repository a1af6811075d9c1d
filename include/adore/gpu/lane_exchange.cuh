// SPDX-License-Identifier: Apache-2.0
// Where the blocks that share a lane meet and tell each other what they found, if they are no
// cluster. The blocks of a cluster lie in one part of the chip: with sixteen of them, eight lanes
// leave multiprocessors of some parts idle while another part attends two lanes.
#pragma once

#include "adore/gpu/warp.cuh"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>

namespace adore::gpu::detail {

/// Device memory of one group of blocks: how many have arrived, never reset; the lowest slot that
/// each has found, [turn, block]; peaks, [chunk, query row]; outputs, [chunk, query row, channel].
class lane_exchange {
 public:
  static constexpr index_t blocks = 16;     // of a group, each with a chunk
  static constexpr index_t most_rows = 16;  // query rows of a pass
  static constexpr index_t most_channels = 256;
  static constexpr index_t most_lanes = 16;      // more of them fill the chip anyway
  static constexpr index_t fewest_slots = 8193;  // shorter lanes are shared by fewer blocks

 private:
  static constexpr std::size_t lowest_at = 128;
  static constexpr std::size_t peaks_at = lowest_at + 2 * blocks * sizeof(keyed_slot);
  static constexpr std::size_t parts_at = peaks_at + blocks * most_rows * sizeof(float2);

 public:
  static constexpr std::size_t bytes =
      parts_at + blocks * most_rows * most_channels * sizeof(float);

  lane_exchange() = default;
  /// That of one group.
  ///
  /// @param memory  [group] of `bytes` each, at first zero
  __device__ __forceinline__ lane_exchange(unsigned char* memory, index_t group)
      : memory_(memory + static_cast<std::size_t>(group) * bytes) {}

  __device__ __forceinline__ bool there() const { return memory_ != nullptr; }
  __device__ __forceinline__ keyed_slot* lowest(unsigned turn) const {
    return reinterpret_cast<keyed_slot*>(memory_ + lowest_at) + turn * blocks;
  }
  __device__ __forceinline__ float2* peaks() const {
    return reinterpret_cast<float2*>(memory_ + peaks_at);
  }
  __device__ __forceinline__ float* parts() const {
    return reinterpret_cast<float*>(memory_ + parts_at);
  }

  /// Waits for all threads of the group; what they wrote to device memory is then visible. All its
  /// blocks must run at once.
  __device__ __forceinline__ void meet() const { meet_at(memory_); }

 private:
  /// Not inlined: most launches have no group, and it is called in many places.
  static __device__ __noinline__ void meet_at(unsigned char* arrivals) {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned before = 0;
      asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(__cvta_generic_to_global(arrivals))
                   : "memory");
      unsigned const all = before - before % blocks + blocks;
      unsigned now = before + 1;
      while (static_cast<int>(now - all) < 0) {
        asm volatile("ld.acquire.gpu.u32 %0, [%1];"
                     : "=r"(now)
                     : "l"(__cvta_generic_to_global(arrivals))
                     : "memory");
      }
    }
    __syncthreads();
  }

  unsigned char* memory_ = nullptr;
};

}  // namespace adore::gpu::detail
