// SPDX-License-Identifier: Apache-2.0
// A contestant's cache and controller on the device's engine.
#pragma once

#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_model.cuh"
#include "request.hpp"
#include <adore/types.hpp>

#include <memory>

namespace comparison {

/// @param weights          must outlive the cache, whose controller reads its embeddings
/// @param tokens           of the longest row
/// @param exports_weights  for whoever watches its attention
/// @throws std::invalid_argument if the controller is made for another model
std::unique_ptr<llama_example::gpu::device_cache<float>> make_device_contestant(
    contestant const& entry,
    request const& asked,
    llama_example::gpu::device_model<float> const& weights,
    adore::index_t rows,
    adore::index_t tokens,
    bool exports_weights);

}  // namespace comparison
