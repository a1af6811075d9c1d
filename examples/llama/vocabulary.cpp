// SPDX-License-Identifier: Apache-2.0
#include "llama/vocabulary.hpp"

#include <llama.h>

#include <stdexcept>

namespace llama_example {

vocabulary::vocabulary(std::string const& path) {
  llama_log_set([](ggml_log_level, char const*, void*) {}, nullptr);  // we report by exceptions
  llama_model_params parameters = llama_model_default_params();
  parameters.vocab_only = true;
  model_ = {llama_model_load_from_file(path.c_str(), parameters),
            [](llama_model* model) { llama_model_free(model); }};
  if (!model_) {
    throw std::runtime_error("model file " + path + ": its vocabulary cannot be read");
  }
}

std::vector<std::int32_t> vocabulary::encode(std::string_view text) const {
  llama_vocab const* const vocab = llama_model_get_vocab(model_.get());
  auto const length = static_cast<std::int32_t>(text.size());
  std::vector<std::int32_t> tokens(text.size() + 8);  // a token has one byte or more
  std::int32_t const count = llama_tokenize(vocab,
                                            text.data(),
                                            length,
                                            tokens.data(),
                                            static_cast<std::int32_t>(tokens.size()),
                                            false,
                                            false);
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
