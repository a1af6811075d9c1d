// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/word_embeddings.hpp"

#include "llama_cpp/llama_objects.hpp"

#include <gguf.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

namespace llama_cpp_example {

word_embeddings::word_embeddings(std::string path)
    : path_(std::move(path)), file_(path_, std::ios::binary) {
  kept_error const error;
  std::unique_ptr<gguf_context, decltype(&gguf_free)> const header(
      gguf_init_from_file(path_.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (!header) refuse("cannot be read as GGUF" + error.in_parentheses());
  std::int64_t const id = gguf_find_tensor(header.get(), "token_embd.weight");
  if (id < 0) refuse("lacks the tensor token_embd.weight, which a controller reads");
  std::int64_t const* const shape = gguf_get_tensor_ne(header.get(), id);
  width_ = shape[0];
  words_ = shape[1];
  type_ = gguf_get_tensor_type(header.get(), id);
  if (type_ != GGML_TYPE_F32 && ggml_get_type_traits(type_)->to_float == nullptr) {
    refuse(std::string("tensor token_embd.weight has the type ") + ggml_type_name(type_) +
           ", which cannot be turned into float");
  }
  offset_ = static_cast<std::int64_t>(gguf_get_data_offset(header.get()) +
                                      gguf_get_tensor_offset(header.get(), id));
  row_.resize(ggml_row_size(type_, width_));
}

void word_embeddings::read(std::int32_t id, std::span<float> embedding) {
  if (id < 0 || id >= words_) {
    refuse("has " + std::to_string(words_) + " words, none is number " + std::to_string(id));
  }
  file_.seekg(offset_ + id * static_cast<std::int64_t>(row_.size()));
  file_.read(row_.data(), static_cast<std::streamsize>(row_.size()));
  if (!file_) refuse("is cut off: the embedding of word " + std::to_string(id) + " is missing");
  if (type_ == GGML_TYPE_F32) {
    std::memcpy(embedding.data(), row_.data(), row_.size());
  } else {
    ggml_get_type_traits(type_)->to_float(row_.data(), embedding.data(), width_);
  }
}

void word_embeddings::refuse(std::string const& why) const {
  throw std::runtime_error("model file " + path_ + ": " + why);
}

}  // namespace llama_cpp_example
