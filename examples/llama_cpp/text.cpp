// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/text.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace llama_cpp_example {

std::vector<llama_token> tokens_of(llama_model const* model,
                                   std::string_view text,
                                   bool with_begin,
                                   bool with_marks) {
  llama_vocab const* const vocab = llama_model_get_vocab(model);
  if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
    throw std::runtime_error("the model has no vocabulary, so that no text can be read");
  }
  std::vector<llama_token> tokens(text.size() + 8);  // a token has one byte or more
  std::int32_t count = -1;
  try {
    count = llama_tokenize(vocab,
                           text.data(),
                           static_cast<std::int32_t>(text.size()),
                           tokens.data(),
                           static_cast<std::int32_t>(tokens.size()),
                           with_begin,
                           with_marks);
  } catch (std::out_of_range const&) {
    throw std::runtime_error("the text cannot be tokenised: the model lacks a token for a byte");
  }
  if (count < 0) throw std::runtime_error("the text cannot be tokenised");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string piece_of(llama_model const* model, llama_token token) {
  std::string piece(256, '\0');
  std::int32_t const length = llama_token_to_piece(llama_model_get_vocab(model),
                                                   token,
                                                   piece.data(),
                                                   static_cast<std::int32_t>(piece.size()),
                                                   0,
                                                   false);
  piece.resize(length > 0 ? static_cast<std::size_t>(length) : 0);
  return piece;
}

std::string chat::user_says(std::string const& words) {
  messages_.emplace_back("user", words);
  std::string const talk = formatted(true);
  std::string next = talk.empty() ? words + "\n" : talk.substr(told_);
  told_ = talk.size();
  return next;
}

void chat::model_says(std::string const& words) {
  messages_.emplace_back("assistant", words);
  std::string const talk = formatted(false);
  auto const found = talk.find(words, told_);
  // what closes the answer is still to be read, before the next question
  told_ = found == std::string::npos ? talk.size() : found + words.size();
}

std::string chat::formatted(bool open_answer) const {
  char const* const form = llama_model_chat_template(model_, nullptr);
  if (form == nullptr) return "";
  std::vector<llama_chat_message> messages;
  for (auto const& [role, words] : messages_) messages.push_back({role.c_str(), words.c_str()});
  std::string talk;
  std::int32_t length = 0;
  do {  // the first call says how long it is
    talk.resize(static_cast<std::size_t>(length));
    length = llama_chat_apply_template(form,
                                       messages.data(),
                                       messages.size(),
                                       open_answer,
                                       talk.data(),
                                       static_cast<std::int32_t>(talk.size()));
  } while (length > static_cast<std::int32_t>(talk.size()));
  talk.resize(length > 0 ? static_cast<std::size_t>(length) : 0);
  return talk;
}

}  // namespace llama_cpp_example
