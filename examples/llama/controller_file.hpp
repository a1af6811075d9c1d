// SPDX-License-Identifier: Apache-2.0
// A controller of ADORE from a file that a training program wrote.
#pragma once

#include <adore/controller/weights.hpp>

#include <string>

namespace llama_example {

/// Reads a safetensors file with the tensors of `adore::controller_weights`, whose metadata name
/// its options.
///
/// @throws std::runtime_error or std::invalid_argument naming the file, the tensor or option, what
///         was found and what was expected
adore::controller_weights read_controller(std::string const& path);

}  // namespace llama_example
