// SPDX-License-Identifier: Apache-2.0
#include "llama/vocabulary.hpp"

#include <gguf.h>
#include <llama.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <unordered_set>

namespace llama_example {

namespace {

/// llama.cpp would print why it refuses a file; we report by exceptions.
void keep_first_error(ggml_log_level level, char const* text, void* reason) {
  auto& first = *static_cast<std::string*>(reason);
  if (level == GGML_LOG_LEVEL_ERROR && first.empty()) first = text;
}
void ignore(ggml_log_level, char const*, void*) {}

/// The text without line breaks: a damaged file may bring its own into a message.
std::string in_one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace_if(
      text.begin(), text.end(), [](char letter) { return letter >= 0 && letter < ' '; }, '?');
  return text;
}

/// llama.cpp ends the program where two tokens are the same text, so that we look first.
void refuse_repeated_tokens(std::string const& path) {
  std::unique_ptr<gguf_context, decltype(&gguf_free)> const file(
      gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (!file) return;
  std::int64_t const key = gguf_find_key(file.get(), "tokenizer.ggml.tokens");
  if (key < 0 || gguf_get_kv_type(file.get(), key) != GGUF_TYPE_ARRAY ||
      gguf_get_arr_type(file.get(), key) != GGUF_TYPE_STRING) {
    return;
  }
  std::unordered_set<std::string_view> seen;
  for (std::size_t i = 0; i < gguf_get_arr_n(file.get(), key); ++i) {
    std::string_view const token = gguf_get_arr_str(file.get(), key, i);
    if (!token.empty() && !seen.insert(token).second) {  // empty ones it numbers
      throw std::runtime_error("model file " + path + ": is damaged: its token " +
                               std::to_string(i) + " repeats an earlier one");
    }
  }
}

}  // namespace

vocabulary::vocabulary(std::string const& path) {
  llama_model_params parameters = llama_model_default_params();
  parameters.vocab_only = true;
  std::string reason;
  llama_log_set(ignore, nullptr);
  refuse_repeated_tokens(path);
  llama_log_set(keep_first_error, &reason);
  model_ = {llama_model_load_from_file(path.c_str(), parameters),
            [](llama_model* model) { llama_model_free(model); }};
  llama_log_set(ignore, nullptr);
  if (!model_) {
    throw std::runtime_error("model file " + path + ": its vocabulary cannot be read (" +
                             in_one_line(reason) + ")");
  }
}

std::vector<std::int32_t> vocabulary::encode(std::string_view text) const {
  llama_vocab const* const vocab = llama_model_get_vocab(model_.get());
  auto const length = static_cast<std::int32_t>(text.size());
  std::vector<std::int32_t> tokens(text.size() + 8);  // mostly a token has one byte or more
  auto const tokenise = [&] {
    return llama_tokenize(vocab,
                          text.data(),
                          length,
                          tokens.data(),
                          static_cast<std::int32_t>(tokens.size()),
                          false,
                          false);
  };
  std::int32_t count = -1;
  try {
    count = tokenise();
    // a space that has no token of its own is spelled by several; the least number is an error
    if (count < 0 && count > std::numeric_limits<std::int32_t>::min()) {
      tokens.resize(static_cast<std::size_t>(-count));
      count = tokenise();
    }
  } catch (std::out_of_range const&) {
    throw std::runtime_error("the text cannot be tokenised: the model lacks a token for a byte");
  }
  if (count < 0) throw std::runtime_error("the text cannot be tokenised");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string vocabulary::decode(std::int32_t token) const {
  char piece[256];
  std::int32_t const length = llama_token_to_piece(
      llama_model_get_vocab(model_.get()), token, piece, sizeof piece, 0, true);
  return length > 0 ? std::string(piece, static_cast<std::size_t>(length)) : std::string{};
}

}  // namespace llama_example
