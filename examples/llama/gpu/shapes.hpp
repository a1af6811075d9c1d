// SPDX-License-Identifier: Apache-2.0
// The numbers of well-known models, for random weights of their shape.
#pragma once

#include "llama/model.hpp"

#include <stdexcept>
#include <string>
#include <string_view>

namespace llama_example::gpu {

/// @return the numbers of a model, with no weights in it
/// @throws std::invalid_argument for another name
inline model shape_named(std::string_view name) {
  model m;
  m.norm_epsilon = 1e-5F;
  if (name == "7b") {  // Llama 2
    m.width = 4096, m.layers = 32, m.heads = 32, m.kv_heads = 32, m.channels = 128;
    m.hidden = 11008, m.vocabulary = 32000;
  } else if (name == "8b") {  // Llama 3
    m.width = 4096, m.layers = 32, m.heads = 32, m.kv_heads = 8, m.channels = 128;
    m.hidden = 14336, m.vocabulary = 128256, m.rope_base = 500000.0;
  } else if (name == "135m") {  // SmolLM2
    m.width = 576, m.layers = 30, m.heads = 9, m.kv_heads = 3, m.channels = 64;
    m.hidden = 1536, m.vocabulary = 49152, m.rope_base = 100000.0;
  } else {
    throw std::invalid_argument("there is no shape '" + std::string(name) +
                                "'; there are 7b, 8b, 135m");
  }
  m.rope_channels = m.channels;
  return m;
}

}  // namespace llama_example::gpu
