// SPDX-License-Identifier: Apache-2.0
// What a comparison is asked to do, read from the command line and checked before any long work.
#pragma once

#include "retrieval_cases.hpp"
#include <adore/rebuild/schedule.hpp>
#include <adore/types.hpp>

#include <optional>
#include <string>
#include <vector>

namespace comparison {

/// One line of the table: a policy at a budget, or a policy without one.
struct contestant {
  std::string policy;  ///< as it was written, e.g. "h2o" or "h2o(recent=16)"
  std::optional<adore::index_t> budget{};
  std::string label{};       ///< the same with what follows, for the table
  std::string controller{};  ///< file, for a policy that takes scores
  adore::rebuild_options rebuild{};
};

struct request {
  std::string model, text;
  int tokens = 512;  ///< per sequence, or of the cases' prompts on average
  int sequences = 1;
  int prompt = 0;                     ///< tokens of each sequence that enter densely, 0: none
  std::string retrieval;              ///< file with cases of line retrieval instead of a text
  std::vector<retrieval_case> cases;  ///< of that file
  int answer_tokens = 32, together = 64;
  int threads = 1;
  bool on_device = false;             ///< the engine of examples/llama/gpu instead of the host's
  std::optional<adore::scope> reach;  ///< none: each policy's own
  adore::position_scheme positions = adore::position_scheme::original;
  std::vector<contestant> contestants;  ///< the first is keep_all, which all are measured against
  std::vector<std::string> left_out;    ///< by `all`, each with its reason
  std::string csv, json, plot;          ///< file names, empty: not written
};

/// A mistake in what was asked for, in one sentence.
struct mistake {
  std::string sentence;
};

/// @return nothing if --help was asked for and printed
/// @throws mistake
std::optional<request> read_request(int count, char** arguments);

}  // namespace comparison
