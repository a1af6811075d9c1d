// SPDX-License-Identifier: Apache-2.0
// A tiny random model without a vocabulary, loaded by llama.cpp, and llama.cpp alone to compare
// with.
#pragma once

#include "llama/tiny_model.hpp"
#include "llama_cpp/decoder.hpp"
#include "llama_cpp/llama_objects.hpp"

#include <doctest/doctest.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace llama_cpp_example::testing {

using llama_example::testing::temporary_folder;
using llama_example::testing::tiny_model;
using llama_example::testing::tiny_shape;
using tokens_t = std::vector<llama_token>;

struct loaded_model {
  temporary_folder folder;
  std::string path = folder.file("tiny.gguf");
  tiny_model numbers;
  model_ptr weights;

  /// @param gpu_layers  layers on devices, if there are any
  /// @param devices     that share the layers evenly; empty: those that llama.cpp knows
  explicit loaded_model(tiny_shape const& shape = {},
                        int gpu_layers = 0,
                        std::vector<ggml_backend_dev_t> devices = {})
      : numbers(shape) {
    numbers.entries["tokenizer.ggml.model"] = std::string("no_vocab");
    numbers.write(path);
    kept_error const error;
    llama_model_params parameters = llama_model_default_params();
    parameters.n_gpu_layers = gpu_layers;
    std::vector<float> shares(llama_max_devices());  // it reads so many
    if (!devices.empty()) {
      std::fill_n(shares.begin(), devices.size(), 1.0F);
      devices.push_back(nullptr);  // the end
      parameters.devices = devices.data();
      parameters.tensor_split = shares.data();
    }
    weights.reset(llama_model_load_from_file(path.c_str(), parameters));
    INFO(error.in_parentheses());
    REQUIRE(weights != nullptr);
  }
};

/// float32 in the cache: what is computed is what a test computes, but for rounding.
inline decoder_options exact(std::string policy, adore::index_t chunk = 1) {
  decoder_options options;
  options.policy = std::move(policy);
  options.chunk = chunk;
  options.cache_type = GGML_TYPE_F32;
  options.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  return options;
}

inline tokens_t random_text(std::size_t count,
                            unsigned seed,
                            int vocabulary = tiny_shape{}.vocabulary) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<llama_token> distribution(0, vocabulary - 1);
  tokens_t text(count);
  for (llama_token& token : text) token = distribution(random);
  return text;
}

/// llama.cpp without the plug-in: chunk by chunk, as its own examples do it.
class plain_llama {
 public:
  plain_llama(llama_model* model, decoder_options const& like)
      : chunk_(static_cast<std::size_t>(like.chunk)),
        vocabulary_(static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))) {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>(like.cells);
    parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(like.chunk);
    parameters.n_threads = parameters.n_threads_batch = like.threads;
    parameters.type_k = parameters.type_v = like.cache_type;
    parameters.flash_attn_type = like.flash_attention;
    context_.reset(llama_init_from_model(model, parameters));
    REQUIRE(context_ != nullptr);
  }
  std::vector<float> feed(tokens_t tokens) {
    for (std::size_t begin = 0; begin < tokens.size(); begin += chunk_) {
      auto const count = std::min(chunk_, tokens.size() - begin);
      REQUIRE(llama_decode(context_.get(),
                           llama_batch_get_one(tokens.data() + begin,
                                               static_cast<std::int32_t>(count))) == 0);
    }
    float const* const last = llama_get_logits_ith(context_.get(), -1);
    return {last, last + vocabulary_};
  }

 private:
  std::size_t chunk_, vocabulary_;
  context_ptr context_;
};

}  // namespace llama_cpp_example::testing
