// SPDX-License-Identifier: Apache-2.0
// Line retrieval: a record of named lines with a number each, then a question for one of them. The
// files are those of LongEval's task "lines" (github.com/DachengLi1/LongChat), a JSON object a
// line.
#pragma once

#include "llama/vocabulary.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace comparison {

struct retrieval_case {
  std::vector<std::int32_t> prompt;  ///< tokens of the record and the question
  std::vector<std::int32_t> answer;  ///< the asked line as the record has it; empty if not named
  long expected = 0;                 ///< the number that an answer must give
};

/// The first `count` cases of a file, all if 0. Fields: "prompt", "expected_number", and
/// "correct_line" where there is one; others are ignored.
///
/// @throws std::runtime_error naming the file and the line that is no case
std::vector<retrieval_case> read_retrieval_cases(std::string const& path,
                                                 llama_example::vocabulary const& vocabulary,
                                                 int count);

/// The first run of digits of a text as a number, if there is one that fits.
std::optional<long> first_number(std::string_view text);

}  // namespace comparison
