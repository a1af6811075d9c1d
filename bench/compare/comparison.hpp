// SPDX-License-Identifier: Apache-2.0
// Runs all contestants in lock-step over the text and measures each.
#pragma once

#include "llama/engine.hpp"
#include "request.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace comparison {

/// One line of the table.
struct result {
  std::string policy;    ///< as it was asked for
  std::string settings;  ///< with all its fields
  std::optional<adore::index_t> budget;
  adore::scope reach{};
  int tokens = 0;  ///< per sequence
  double perplexity = 0, perplexity_second_half = 0, kl = 0, top1 = 0, kept_weight = 0;
  std::size_t kv_bytes = 0, kv_bytes_live = 0;
  double stage_us_per_token = 0, tokens_per_second = 0;
};

/// Told now and then: steps done of how many.
using progress = std::function<void(int, int)>;

/// @param tokens  [sequence][token]
std::vector<result> run(request const& asked,
                        llama_example::engine& engine,
                        std::vector<std::vector<std::int32_t>> const& tokens,
                        progress const& report);

}  // namespace comparison
