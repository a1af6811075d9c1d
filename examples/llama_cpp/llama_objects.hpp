// SPDX-License-Identifier: Apache-2.0
// Owners of llama.cpp's objects, and its error messages as text for exceptions.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>

namespace llama_cpp_example {

struct model_deleter {
  void operator()(llama_model* model) const noexcept { llama_model_free(model); }
};
struct context_deleter {
  void operator()(llama_context* context) const noexcept { llama_free(context); }
};
struct sampler_deleter {
  void operator()(llama_sampler* sampler) const noexcept { llama_sampler_free(sampler); }
};
using model_ptr = std::unique_ptr<llama_model, model_deleter>;
using context_ptr = std::unique_ptr<llama_context, context_deleter>;
using sampler_ptr = std::unique_ptr<llama_sampler, sampler_deleter>;

/// A batch of tokens of one sequence each.
class owned_batch {
 public:
  explicit owned_batch(std::int32_t tokens) : batch_(llama_batch_init(tokens, 0, 1)) {}
  ~owned_batch() { llama_batch_free(batch_); }
  owned_batch(owned_batch const&) = delete;
  owned_batch& operator=(owned_batch const&) = delete;
  owned_batch(owned_batch&&) = delete;
  owned_batch& operator=(owned_batch&&) = delete;

  llama_batch& operator*() noexcept { return batch_; }
  void clear() noexcept { batch_.n_tokens = 0; }
  /// @pre there is room
  void add(llama_token token,
           llama_pos position,
           llama_seq_id sequence,
           bool wants_logits) noexcept {
    std::int32_t const i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = wants_logits ? 1 : 0;
  }

 private:
  llama_batch batch_;
};

/// While one lives, llama.cpp prints nothing and its first error message is kept.
class kept_error {
 public:
  kept_error() { llama_log_set(keep, &first_); }
  ~kept_error() {
    llama_log_set([](ggml_log_level, char const*, void*) {}, nullptr);
  }
  kept_error(kept_error const&) = delete;
  kept_error& operator=(kept_error const&) = delete;
  kept_error(kept_error&&) = delete;
  kept_error& operator=(kept_error&&) = delete;

  /// In one line, in parentheses after a space; nothing if there was none.
  std::string in_parentheses() const {
    std::string line = first_.substr(0, first_.find('\n'));
    return line.empty() ? line : " (" + line + ")";
  }

 private:
  static void keep(ggml_log_level level, char const* text, void* first) {
    auto& kept = *static_cast<std::string*>(first);
    if (level == GGML_LOG_LEVEL_ERROR && kept.empty()) kept = text;
  }

  std::string first_;
};

}  // namespace llama_cpp_example
