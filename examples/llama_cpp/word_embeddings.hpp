// SPDX-License-Identifier: Apache-2.0
// A model's word embeddings, which a controller reads: llama.h does not show them, the file does.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace llama_cpp_example {

/// Reads rows of `token_embd.weight` when they are asked for, so that the table takes no memory.
class word_embeddings {
 public:
  /// @param path  GGUF file; of a model in several files, the one with the word embeddings
  /// @throws std::runtime_error naming the file and what is missing in it
  explicit word_embeddings(std::string path);

  int width() const noexcept { return static_cast<int>(width_); }
  /// @param embedding  [width]
  /// @throws std::runtime_error if the file cannot be read there
  void read(std::int32_t id, std::span<float> embedding);

 private:
  [[noreturn]] void refuse(std::string const& why) const;

  std::string path_;
  std::ifstream file_;
  ggml_type type_ = GGML_TYPE_F32;
  std::int64_t width_ = 0, words_ = 0;
  std::int64_t offset_ = 0;  // of the tensor in the file, bytes
  std::vector<char> row_;    // one embedding as it is stored
};

}  // namespace llama_cpp_example
