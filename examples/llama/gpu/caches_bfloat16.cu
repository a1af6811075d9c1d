// SPDX-License-Identifier: Apache-2.0
// The device caches of bfloat16.
#include "llama/gpu/make_cache.cuh"

#include <cuda_bf16.h>

namespace llama_example::gpu {

template std::unique_ptr<device_cache<__nv_bfloat16>> make_device_cache(
    std::string_view, adore::cache_request const&, device_cache_options const&);

}  // namespace llama_example::gpu
