// SPDX-License-Identifier: Apache-2.0
// A controller beside an engine: hears each row's tokens, and scores them for the row's cache.
#pragma once

#include "llama/model.hpp"
#include <adore/cache_options.hpp>
#include <adore/controller/controller.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace llama_example {

class token_scorer {
 public:
  /// Writes a token's embedding, [channel].
  using embedding_source = std::function<void(adore::index_t id, std::span<float> embedding)>;

  /// @param width  channels of an embedding
  /// @throws std::invalid_argument if the controller reads embeddings of another width
  token_scorer(adore::controller const& controller, int width, embedding_source words, int rows);
  token_scorer(adore::controller const& controller, model const& weights, int rows)
      : token_scorer(
            controller,
            weights.width,
            [&weights](adore::index_t id, std::span<float> embedding) {
              std::copy_n(weights.embedding.data.begin() + std::ptrdiff_t{id} * weights.width,
                          weights.width,
                          embedding.begin());
            },
            rows) {}

  adore::index_t outputs() const noexcept { return controller_.weights().outputs; }
  /// A row's sequence begins anew.
  void open(int row);
  /// Hears the new tokens and fills in their scores; valid until the next call.
  void score(std::span<adore::row_tokens> rows);

 private:
  adore::controller const& controller_;
  embedding_source words_;
  std::vector<adore::controller_state> states_;  // [row]
  std::vector<std::vector<float>> logits_;       // [row][output, token]
};

}  // namespace llama_example
