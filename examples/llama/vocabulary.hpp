// SPDX-License-Identifier: Apache-2.0
// A model's tokens: text to ids and back, by llama.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct llama_model;

namespace llama_example {

class vocabulary {
 public:
  /// Loads only the vocabulary of a GGUF file.
  /// @throws std::runtime_error naming the file
  explicit vocabulary(std::string const& path);

  /// No token is added at the beginning; markup in the text is text.
  std::vector<std::int32_t> encode(std::string_view text) const;
  std::string decode(std::int32_t token) const;

 private:
  std::shared_ptr<llama_model> model_;
};

}  // namespace llama_example
