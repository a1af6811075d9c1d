// SPDX-License-Identifier: Apache-2.0
#include "llama/token_scorer.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace llama_example {

token_scorer::token_scorer(adore::controller const& controller,
                           int width,
                           embedding_source words,
                           int rows)
    : controller_(controller),
      words_(std::move(words)),
      states_(static_cast<std::size_t>(rows), controller.start()),
      logits_(states_.size()) {
  if (controller.weights().inputs != width) {
    throw std::invalid_argument("the controller reads embeddings of " +
                                std::to_string(controller.weights().inputs) +
                                " channels, the model's have " + std::to_string(width));
  }
}

void token_scorer::open(int row) {
  states_[static_cast<std::size_t>(row)] = controller_.start();
}

void token_scorer::score(std::span<adore::row_tokens> rows) {
  auto const outputs = static_cast<std::size_t>(controller_.weights().outputs);
  std::vector<float> embeddings;
  for (adore::row_tokens& row : rows) {
    adore::controller_state& state = states_[static_cast<std::size_t>(row.row)];
    std::vector<float>& logits = logits_[static_cast<std::size_t>(row.row)];
    auto const width = static_cast<std::size_t>(controller_.weights().inputs);
    embeddings.resize(width * row.tokens.size());
    for (std::size_t j = 0; j < row.tokens.size(); ++j) {
      words_(row.tokens[j], std::span(embeddings).subspan(j * width, width));
    }
    if (controller_.options().rescores()) {
      controller_.hear(state, embeddings);
      logits.resize(outputs * static_cast<std::size_t>(state.count));
      controller_.score(state, logits);
    } else {
      auto const tokens = static_cast<std::size_t>(row.count);
      std::vector<float> by_token(outputs * tokens);
      controller_.hear(state, embeddings, by_token);
      logits.resize(by_token.size());
      for (std::size_t o = 0; o < outputs; ++o) {
        for (std::size_t j = 0; j < tokens; ++j) logits[o * tokens + j] = by_token[j * outputs + o];
      }
    }
    row.scores = logits;
    row.outputs = static_cast<adore::index_t>(outputs);
  }
}

}  // namespace llama_example
