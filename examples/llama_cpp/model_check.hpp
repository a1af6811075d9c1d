// SPDX-License-Identifier: Apache-2.0
// Whether the plug-in can serve a model: from the metadata of its file before the weights are
// loaded, and from a step of two tokens afterwards.
#pragma once

#include <adore/types.hpp>

#include <llama.h>

#include <cstddef>
#include <string>

namespace llama_cpp_example {

/// Refuses models whose cache is not one plain cell per token: sliding-window layers, recurrent and
/// hybrid models, M-RoPE, models without rotary positions, encoders. Reads no tensor data.
///
/// @throws std::runtime_error naming the file and the reason
void require_supported(std::string const& path);

/// Runs two tokens in a context of its own and looks at what the plug-in relies on.
///
/// @param parameters     of the context to come; its sizes do not matter
/// @param needs_weights  attention weights must be there: in each layer a softmax of the expected
///                       name and shape, whose rows sum to 1 over the cells that were written
/// @return               bytes of K and V per cell, over all layers, of the tensors themselves
/// @throws std::runtime_error saying what is missing
std::size_t require_readable(llama_model* model,
                             llama_context_params parameters,
                             bool needs_weights);

}  // namespace llama_cpp_example
