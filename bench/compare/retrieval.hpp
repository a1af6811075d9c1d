// SPDX-License-Identifier: Apache-2.0
// Streams the prompts of line retrieval under all contestants and lets each answer: the question
// comes when much of the record has been released.
#pragma once

#include "comparison.hpp"
#include "request.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace llama_example {
class engine;
class vocabulary;
}  // namespace llama_example

namespace comparison {

/// A contestant's line of the table, not yet graded, and the tokens of its answers.
struct answered {
  result line;
  std::vector<std::vector<std::int32_t>> answers;  ///< [case][token], answer_tokens each
};

/// Cases that run beside each other, `together` at a time; the last ones may be fewer.
std::vector<std::span<retrieval_case const>> batches_of(request const& asked);
/// Steps of a batch: the longest prompt, then the answer, whose last token no step reads.
int steps_of(std::span<retrieval_case const> batch, int answer_tokens);

/// A contestant's line before it has answered; without bytes.
result line_of(request const& asked,
               contestant const& entry,
               std::string settings,
               adore::index_t nominal_budget,
               adore::scope reach);

/// All prompts token by token, then greedy decoding; contestants in lock-step as rows of a batch.
/// Bytes are those of the first batch; on the device, where all rows go on to the last step,
/// shorter ones may hold more.
std::vector<answered> retrieve(request const& asked,
                               llama_example::engine& engine,
                               progress const& report);

/// The table: an answer is right if its first number is the expected one.
std::vector<result> graded(request const& asked,
                           std::vector<answered> lines,
                           llama_example::vocabulary const& vocabulary);

}  // namespace comparison
