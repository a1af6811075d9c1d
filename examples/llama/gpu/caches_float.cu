// SPDX-License-Identifier: Apache-2.0
// The device caches of float.
#include "llama/gpu/make_cache.cuh"

namespace llama_example::gpu {

template std::unique_ptr<device_cache<float>> make_device_cache(std::string_view,
                                                                adore::cache_request const&,
                                                                device_cache_options const&);

}  // namespace llama_example::gpu
