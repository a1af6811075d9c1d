// SPDX-License-Identifier: Apache-2.0
// A controller beside the engine: hears each row's tokens, and scores them for the row's cache.
#pragma once

#include "llama/model.hpp"
#include <adore/cache_options.hpp>
#include <adore/controller/controller.hpp>

#include <span>
#include <vector>

namespace llama_example {

class token_scorer {
 public:
  /// @throws std::invalid_argument if the controller reads embeddings of another width
  token_scorer(adore::controller const& controller, model const& weights, int rows);

  /// A row's sequence begins anew.
  void open(int row);
  /// Hears the new tokens and fills in their scores; valid until the next call.
  void score(std::span<adore::row_tokens> rows);

 private:
  adore::controller const& controller_;
  model const& model_;
  std::vector<adore::controller_state> states_;  // [row]
  std::vector<std::vector<float>> logits_;       // [row][output, token]
};

}  // namespace llama_example
