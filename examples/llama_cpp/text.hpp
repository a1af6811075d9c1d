// SPDX-License-Identifier: Apache-2.0
// Text of a model: tokens, pieces, and the marks that a chat puts around its messages.
#pragma once

#include <llama.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama_cpp_example {

/// @param with_begin  with the token that the model wants at the beginning of a text, if it wants
/// one
/// @param with_marks  words such as "<|im_end|>" stand for their special tokens
/// @throws std::runtime_error if the model has no vocabulary, or lacks a token for a byte
std::vector<llama_token> tokens_of(llama_model const* model,
                                   std::string_view text,
                                   bool with_begin,
                                   bool with_marks);
std::string piece_of(llama_model const* model, llama_token token);

/// A talk in the model's own chat format; in plain lines, if it has none that llama.cpp knows.
class chat {
 public:
  explicit chat(llama_model const* model) : model_(model) {}
  /// What the model is to read next: the user's words with all marks around them.
  std::string user_says(std::string const& words);
  void model_says(std::string const& words);

 private:
  std::string formatted(bool open_answer) const;

  llama_model const* model_;
  std::vector<std::pair<std::string, std::string>> messages_;  // role, words
  std::size_t told_ = 0;  // letters of the formatted talk that the model has read or written
};

}  // namespace llama_cpp_example
