// SPDX-License-Identifier: Apache-2.0
// The comparison on a CUDA device. Defined in device_comparison.cu, or in no_device.cpp where the
// program is built without a device half.
#pragma once

#include "comparison.hpp"
#include "llama/model.hpp"
#include "request.hpp"
#include "retrieval.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace comparison {

/// Why nothing can be compared on a device here; nothing if it can.
std::optional<std::string> why_no_device();

/// As `run`: the same rows, tokens and measures, in float32. What policies cost is not measured:
/// their decisions are a part of the attention kernel.
std::vector<result> run_on_device(request const& asked,
                                  llama_example::model const& weights,
                                  std::vector<std::vector<std::int32_t>> const& tokens,
                                  progress const& report);

/// As `retrieve`.
std::vector<answered> retrieve_on_device(request const& asked,
                                         llama_example::model const& weights,
                                         progress const& report);

}  // namespace comparison
