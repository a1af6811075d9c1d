// SPDX-License-Identifier: Apache-2.0
// llama.cpp alone, whose cache loses nothing, in batches as long as those of the plug-in: what is
// computed for a token depends a little on how many rows are computed with it.
#pragma once

#include "loaded_model.hpp"

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace llama_cpp_example::testing {

class never_released {
 public:
  /// @param like  options of the plug-in that it is compared with
  /// @param rows  most rows of a step
  never_released(llama_model* model, decoder_options const& like, adore::index_t rows)
      : vocabulary_(static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))),
        batch_(rows) {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>(like.cells);
    parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(rows);
    parameters.n_seq_max = static_cast<std::uint32_t>(rows);
    parameters.kv_unified = true;
    parameters.n_threads = parameters.n_threads_batch = like.threads;
    parameters.type_k = parameters.type_v = like.cache_type;
    parameters.flash_attn_type = like.flash_attention;
    context_.reset(llama_init_from_model(model, parameters));
    REQUIRE(context_ != nullptr);
  }

  /// Logits of the last token.
  ///
  /// @param beside  rows that see nothing but themselves and leave with the step
  std::vector<float> step(std::span<llama_token const> tokens, adore::index_t beside) {
    batch_.clear();
    for (llama_token const& token : tokens) {
      batch_.add(token, next_++, 0, &token == &tokens.back());
    }
    for (adore::index_t i = 1; i <= beside; ++i) batch_.add(0, 0, i, false);
    REQUIRE(llama_decode(context_.get(), *batch_) == 0);
    for (adore::index_t i = 1; i <= beside; ++i) {
      llama_memory_seq_rm(llama_get_memory(context_.get()), i, -1, -1);
    }
    float const* const last =
        llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(tokens.size()) - 1);
    return {last, last + vocabulary_};
  }

 private:
  std::size_t vocabulary_;
  owned_batch batch_;
  context_ptr context_;
  llama_pos next_ = 0;
};

}  // namespace llama_cpp_example::testing
