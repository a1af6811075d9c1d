// SPDX-License-Identifier: Apache-2.0
// Full attention of the host's example engine, shown to the labels.
#pragma once

#include "labels.hpp"
#include "llama/engine.hpp"

#include <cstdint>
#include <span>

namespace controller_labels {

/// One sequence and what is learnt from it.
struct labelled_crop {
  std::span<std::int32_t const> tokens;
  crop_labels labels;
};

/// Runs the model over the sequences side by side; their labels see all of its attention.
///
/// @param crops  all of the same length
void show_attention(llama_example::engine& engine, std::span<labelled_crop> crops);

}  // namespace controller_labels
