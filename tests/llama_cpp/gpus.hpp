// SPDX-License-Identifier: Apache-2.0
// The GPUs that llama.cpp knows, and a model for which their sums are of float32.
#pragma once

#include "llama/tiny_model.hpp"

#include <ggml-backend.h>

#include <cstddef>
#include <cstdlib>
#include <string>
#include <vector>

namespace llama_cpp_example::testing {

inline std::vector<ggml_backend_dev_t> all_gpus() {
  std::vector<ggml_backend_dev_t> gpus;
  for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    ggml_backend_dev_t const device = ggml_backend_dev_get(i);
    if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU) gpus.push_back(device);
  }
  return gpus;
}

/// ggml-cuda multiplies float32 in three ways: one to three rows exactly (mmvf); four to sixteen on
/// tensor cores, which take them for TF32 of ten bits, whatever cuBLAS is told (mmf), but only if a
/// matrix has rows of 32 numbers and 32 rows, or multiples; the rest by cuBLAS, in TF32 too unless
/// NVIDIA_TF32_OVERRIDE is 0. No matrix here has both multiples. Heads of 40 channels are the
/// smallest that its flash attention knows.
inline llama_example::testing::tiny_shape whole_float32() {
  llama_example::testing::tiny_shape shape;
  shape.width = shape.hidden = 48;
  shape.channels = shape.rope_channels = 40;
  return shape;
}

/// What cuBLAS has been told, for the message of a failed check; CTest sets it to 0.
inline std::string tf32_override() {
  char const* const set = std::getenv("NVIDIA_TF32_OVERRIDE");
  return std::string("NVIDIA_TF32_OVERRIDE=") + (set == nullptr ? "" : set);
}

}  // namespace llama_cpp_example::testing
