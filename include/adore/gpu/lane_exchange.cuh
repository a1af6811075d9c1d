// SPDX-License-Identifier: Apache-2.0
// Where the blocks that share a lane meet and tell each other what they found, if they are no
// cluster. The blocks of a cluster lie in one part of the chip: where lanes are few and clusters
// large, some parts have multiprocessors to spare while others attend two lanes.
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
  static constexpr index_t most_blocks = 64;  // of a group, a power of two
  static constexpr index_t most_chunks = 64;
  static constexpr index_t most_rows = 16;  // query rows of a pass

 private:
  static constexpr index_t most_lanes = 64;      // more of them are shared by few blocks
  static constexpr index_t fewest_slots = 1025;  // shorter ones by clusters
  static constexpr std::size_t lowest_at = 128;
  static constexpr std::size_t peaks_at = lowest_at + 2 * most_blocks * sizeof(keyed_slot);
  static constexpr std::size_t parts_at = peaks_at + most_chunks * most_rows * sizeof(float2);

 public:
  /// Of a lane of so many slots, however few lanes there are.
  static constexpr index_t most_chunks_of(index_t slots) {
    return slots > 8192 ? most_chunks : slots > 4096 ? 32 : 16;
  }
  /// The outputs of a lane of so many chunks.
  static constexpr index_t floats(index_t chunks, index_t channels) {
    return chunks * most_rows * channels;
  }
  /// Of outputs, that a group should have room for; 0: blocks that share lanes are clusters.
  ///
  /// @param lanes  of a layer
  static constexpr index_t useful_floats(index_t lanes, index_t slots, index_t channels) {
    if (lanes > most_lanes || slots < fewest_slots) return 0;
    return floats(most_chunks_of(slots), channels);
  }
  /// Of a group.
  ADORE_HOST_DEVICE static constexpr std::size_t bytes(index_t floats) {
    return parts_at + static_cast<std::size_t>(floats) * sizeof(float);
  }

  lane_exchange() = default;
  /// That of one group.
  ///
  /// @param memory  [group] of `bytes(floats)` each, at first zero
  __device__ __forceinline__
  lane_exchange(unsigned char* memory, index_t floats, index_t group, unsigned blocks)
      : memory_(memory + static_cast<std::size_t>(group) * bytes(floats)), blocks_(blocks) {}

  __device__ __forceinline__ bool there() const { return memory_ != nullptr; }
  __device__ __forceinline__ keyed_slot* lowest(unsigned turn) const {
    return reinterpret_cast<keyed_slot*>(memory_ + lowest_at) + turn * most_blocks;
  }
  __device__ __forceinline__ float2* peaks() const {
    return reinterpret_cast<float2*>(memory_ + peaks_at);
  }
  __device__ __forceinline__ float* parts() const {
    return reinterpret_cast<float*>(memory_ + parts_at);
  }

  /// Waits for all threads of the group; what they wrote to device memory is then visible. All its
  /// blocks must run at once.
  __device__ __forceinline__ void meet() const { meet_at(memory_, most_blocks / blocks_); }

 private:
  /// Not inlined: most launches have no group, and it is called in many places.
  ///
  /// @param share  of what all together count up to: groups of any size leave a multiple of it
  static __device__ __noinline__ void meet_at(unsigned char* arrivals, unsigned share) {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned before = 0;
      asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;"
                   : "=r"(before)
                   : "l"(__cvta_generic_to_global(arrivals)), "r"(share)
                   : "memory");
      unsigned const all = before - before % most_blocks + most_blocks;
      unsigned now = before + share;
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
  unsigned blocks_ = 1;
};

}  // namespace adore::gpu::detail
