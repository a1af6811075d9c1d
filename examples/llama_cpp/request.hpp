// SPDX-License-Identifier: Apache-2.0
// What the command line of adore-llama asks for.
#pragma once

#include "llama_cpp/decoder.hpp"

#include <llama.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llama_cpp_example {

struct request {
  enum class task : std::uint8_t { generate, perplexity, talk };

  std::string model;
  std::string controller;  ///< file, for a policy that takes scores
  std::string text;        ///< prompt, or the text whose perplexity is asked for
  task what = task::generate;
  int predict = 128;                    ///< tokens to write
  int limit = 0;                        ///< first tokens of the text that are used; 0: all
  float temperature = 0.0F;             ///< 0: always the likeliest token
  std::optional<adore::index_t> cells;  ///< B as it was asked for
  int gpu_layers = 0;
  llama_split_mode split = LLAMA_SPLIT_MODE_LAYER;
  std::vector<float> shares;     ///< of the layers on devices, [device]; empty: by free memory
  std::vector<std::string> rpc;  ///< host:port
  bool shows_kept = false;
  decoder_options decoding;
};

/// @return nothing if the command line only asked for help, which has been printed
/// @throws std::exception with a sentence for what cannot be understood
std::optional<request> read_request(int count, char** arguments);

}  // namespace llama_cpp_example
