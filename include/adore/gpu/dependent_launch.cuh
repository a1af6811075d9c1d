// SPDX-License-Identifier: Apache-2.0
// Kernels of a stream that overlap at their edges (programmatic dependent launch, sm_90): the next
// one is brought onto the chip, and may do what does not depend on this one, before this one ends.
#pragma once

#include <cuda_runtime_api.h>

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

}  // namespace adore::gpu::detail
