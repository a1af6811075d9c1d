// SPDX-License-Identifier: Apache-2.0
// What a launch asks for beside its grid (sm_90): shared memory, clusters, and overlap with the
// kernel before it in the stream (programmatic dependent launch): it is brought onto the chip, and
// may do what does not depend on that kernel, before that one ends.
#pragma once

#include "adore/gpu/error.cuh"

#include <cuda_runtime_api.h>

#include <cstddef>

namespace adore::gpu::detail {

/// Once all blocks have called it or ended, a kernel launched with `may_overlap` begins behind this
/// one. To others it means nothing.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits until the kernels before this one have ended and what they wrote is visible. Without
/// `may_overlap` they have.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Of a launch: it begins while the kernel before it in the stream runs, if that one lets it.
inline cudaLaunchAttribute may_overlap() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}
/// Of a launch: so many neighbouring blocks run at once and see each other's shared memory.
inline cudaLaunchAttribute clusters_of(unsigned blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  return attribute;
}

/// Shared memory that a block may have, static and dynamic.
inline constexpr int most_block_bytes = 227 * 1024;
/// What of it may be dynamic; the static part is rounded up to 128 bytes.
constexpr std::size_t most_dynamic_bytes(std::size_t static_bytes) {
  return most_block_bytes - (static_bytes + 127) / 128 * 128;
}

/// Of the current device.
inline int multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace adore::gpu::detail
