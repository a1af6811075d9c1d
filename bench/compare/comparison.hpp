// SPDX-License-Identifier: Apache-2.0
// Runs all contestants in lock-step over the text and measures each.
#pragma once

#include "request.hpp"
#include <adore/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace llama_example {
class engine;
}

namespace comparison {

inline constexpr int timed_steps = 7;  ///< single-row steps after the text; their median counts

/// One line of the table.
struct result {
  std::string policy;    ///< as it was asked for
  std::string settings;  ///< with all its fields
  std::optional<adore::index_t> budget;
  adore::scope reach{};
  int tokens = 0;  ///< per sequence, or of a prompt on average
  double perplexity = 0, perplexity_second_half = 0, kl = 0, top1 = 0, kept_weight = 0;
  std::size_t kv_bytes = 0, kv_bytes_live = 0;
  std::optional<double> stage_us_per_token;  ///< none: it cannot be told from the attention's
  double tokens_per_second = 0;
  adore::index_t rebuilt = 0;  ///< released tokens that are back at the same time, R
  double computed_per_token = 0,
         deferred_per_token = 0;       ///< rows computed again; tokens that waited
  std::optional<double> exact_match;   ///< share of right answers; then nothing above that looks at
                                       ///< predictions, attention or time is measured
  std::vector<std::string> answers{};  ///< to each case
};

/// Told now and then: steps done of how many.
using progress = std::function<void(int, int)>;

/// @param tokens  [sequence][token]
std::vector<result> run(request const& asked,
                        llama_example::engine& engine,
                        std::vector<std::vector<std::int32_t>> const& tokens,
                        progress const& report);

}  // namespace comparison
