// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/model_check.hpp"

#include "llama_cpp/attention_reader.hpp"
#include "llama_cpp/llama_objects.hpp"

#include <ggml-backend.h>
#include <gguf.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace llama_cpp_example {

namespace {

/// Half a sentence, or nullptr.
char const* why_unsupported(llama_model const* model) {
  if (llama_model_is_hybrid(model)) {
    return "is hybrid: part of its memory is a recurrent state, from which no token can be "
           "released";
  }
  if (llama_model_is_recurrent(model)) {
    return "is recurrent: its memory is a state, from which no token can be released";
  }
  if (llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
    return "has an encoder, whose attention is not causal";
  }
  if (llama_model_is_diffusion(model))
    return "is a diffusion model, which has no cache of the past";
  if (llama_model_n_swa(model) > 0) {
    return "has sliding-window layers, whose cells llama.cpp releases itself, and which need other "
           "tokens than the other layers";
  }
  switch (llama_model_rope_type(model)) {
    case LLAMA_ROPE_TYPE_NORM:
    case LLAMA_ROPE_TYPE_NEOX:
      return nullptr;
    case LLAMA_ROPE_TYPE_NONE:
      return "has no rotary positions, so that it cannot go on past its trained context";
    default:
      return "has several rotary positions per token (M-RoPE), while a cell is released by one";
  }
}

/// What a step of two tokens shows.
struct seen_nodes {
  struct softmax {
    bool well_formed = false;  // float, [cells, 2, heads]
    std::vector<float> data;   // [head, token, cell]
    std::size_t cells = 0;
  };
  std::vector<std::vector<softmax>> weights;  // [layer], one entry per node of that name
  std::vector<std::int64_t> cells;            // [token], where layer 0 puts the keys
  std::size_t key_value_bytes = 0;

  static bool on_node(ggml_tensor* node, bool asks, void* nodes) {
    auto& self = *static_cast<seen_nodes*>(nodes);
    auto const keys = key_write_layer(node);
    auto const layer = weights_layer(node);
    if (asks) return keys || layer || value_write_layer(node);
    if (keys || value_write_layer(node)) self.key_value_bytes += ggml_nbytes(node->view_src);
    ggml_tensor const* const cells = keys == adore::index_t{0} ? node->src[1] : nullptr;
    if (cells != nullptr && cells->type == GGML_TYPE_I64 && cells->ne[0] == 2) {
      self.cells.resize(2);
      ggml_backend_tensor_get(cells, self.cells.data(), 0, ggml_nbytes(cells));
    }
    if (layer && static_cast<std::size_t>(*layer) < self.weights.size()) {
      softmax found;
      found.cells = static_cast<std::size_t>(node->ne[0]);
      found.well_formed = node->type == GGML_TYPE_F32 && node->ne[1] == 2 && node->ne[3] == 1 &&
                          ggml_is_contiguous(node);
      if (found.well_formed) {
        found.data.resize(static_cast<std::size_t>(ggml_nelements(node)));
        ggml_backend_tensor_get(node, found.data.data(), 0, ggml_nbytes(node));
      }
      self.weights[static_cast<std::size_t>(*layer)].push_back(std::move(found));
    }
    return true;
  }
};

/// Each token's weights sum to 1 over its own cell and, for the second, the first one's.
bool sums_to_one(seen_nodes::softmax const& found, std::vector<std::int64_t> const& cells) {
  for (std::size_t row = 0; row < found.data.size() / found.cells; ++row) {
    float sum = 0.0F;
    for (std::size_t token = 0; token <= row % 2; ++token) {
      sum += found.data[row * found.cells + static_cast<std::size_t>(cells[token])];
    }
    if (std::abs(sum - 1.0F) > 1e-3F) return false;
  }
  return true;
}

void check_weights(seen_nodes const& seen) {
  auto const refuse = [](std::string const& what) {
    throw std::runtime_error("the attention weights of this model cannot be read: " + what +
                             "; take a policy that needs none, such as sliding_window or "
                             "streaming_llm");
  };
  if (seen.cells.size() != 2) {
    refuse("no tensor cache_k_l0 is written by SET_ROWS with one cell per token");
  }
  for (std::size_t layer = 0; layer < seen.weights.size(); ++layer) {
    std::string const name = "kq_soft_max-" + std::to_string(layer);
    auto const& found = seen.weights[layer];
    if (found.size() != 1) {
      refuse(std::to_string(found.size()) + " nodes SOFT_MAX are called " + name +
             (found.empty() ? " (flash attention computes none)" : ", one is expected"));
    }
    auto const highest = static_cast<std::size_t>(std::max(seen.cells[0], seen.cells[1]));
    if (!found[0].well_formed || found[0].cells <= highest) {
      refuse(name + " is not float32 [cells, tokens, heads]");
    }
    if (!sums_to_one(found[0], seen.cells)) {
      refuse("rows of " + name + " do not sum to 1 over the cells of the tokens");
    }
  }
}

}  // namespace

void require_supported(std::string const& path) {
  auto const refuse = [&](std::string const& why) {
    throw std::runtime_error("model file " + path + ": " + why);
  };
  kept_error const error;
  std::unique_ptr<gguf_context, decltype(&gguf_free)> const file(
      gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}), gguf_free);
  if (!file) refuse("cannot be read as GGUF" + error.in_parentheses());
  // a model without data: llama.cpp tells what the metadata make of it
  llama_model_params parameters = llama_model_default_params();
  parameters.no_alloc = true;
  parameters.load_mode = LLAMA_LOAD_MODE_NONE;
  parameters.n_gpu_layers = 0;
  model_ptr const model(llama_model_init_from_user(
      file.get(), [](ggml_tensor*, void*) {}, nullptr, parameters));
  if (!model) refuse("llama.cpp can make no model of it" + error.in_parentheses());
  if (char const* const why = why_unsupported(model.get())) refuse(std::string("it ") + why);
}

std::size_t require_readable(llama_model* model,
                             llama_context_params parameters,
                             bool needs_weights) {
  seen_nodes seen;
  seen.weights.resize(static_cast<std::size_t>(llama_model_n_layer(model)));
  parameters.n_ctx = 2;  // llama.cpp makes it a whole granule
  parameters.n_batch = parameters.n_ubatch = 2;
  parameters.n_seq_max = 1;
  parameters.cb_eval = seen_nodes::on_node;
  parameters.cb_eval_user_data = &seen;
  kept_error const error;
  context_ptr const context(llama_init_from_model(model, parameters));
  if (!context) throw std::runtime_error("llama.cpp makes no context" + error.in_parentheses());
  std::array<llama_token, 2> tokens{0, 1};
  if (llama_decode(context.get(), llama_batch_get_one(tokens.data(), 2)) != 0) {
    throw std::runtime_error("llama.cpp cannot decode two tokens" + error.in_parentheses());
  }
  if (seen.key_value_bytes == 0) {
    throw std::runtime_error(
        "this version of llama.cpp keeps K and V in no tensors cache_k_l<layer>, cache_v_l<layer>");
  }
  if (needs_weights) check_weights(seen);
  return seen.key_value_bytes / llama_n_ctx(context.get());
}

}  // namespace llama_cpp_example
