// SPDX-License-Identifier: Apache-2.0
// A controller beside a model of llama.cpp: scores tokens by their word embeddings.
#pragma once

#include "llama/controller_file.hpp"
#include "llama/token_scorer.hpp"
#include "llama_cpp/word_embeddings.hpp"
#include <adore/controller/controller.hpp>

#include <cstdint>
#include <span>
#include <string>

namespace llama_cpp_example {

class scoring {
 public:
  /// @param controller  safetensors file
  /// @param model       GGUF file
  /// @throws std::runtime_error or std::invalid_argument naming the file that does not do
  scoring(std::string const& controller, std::string const& model)
      : controller_(llama_example::read_controller(controller)),
        words_(model),
        scorer_(
            controller_,
            words_.width(),
            [this](std::int32_t id, std::span<float> embedding) { words_.read(id, embedding); },
            1) {}
  ~scoring() = default;
  scoring(scoring const&) = delete;  // the scorer points here
  scoring& operator=(scoring const&) = delete;
  scoring(scoring&&) = delete;
  scoring& operator=(scoring&&) = delete;

  llama_example::token_scorer& scorer() noexcept { return scorer_; }

 private:
  adore::controller controller_;
  word_embeddings words_;
  llama_example::token_scorer scorer_;
};

}  // namespace llama_cpp_example
