// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/attention_reader.hpp"

#include <ggml-backend.h>

#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

namespace llama_cpp_example {

namespace {

/// The layer into whose part of the cache, called prefix<layer>, a node writes rows.
std::optional<adore::index_t> write_layer(ggml_tensor const* node, char const* prefix) {
  if (node->op != GGML_OP_SET_ROWS || node->view_src == nullptr) return std::nullopt;
  return layer_in(node->view_src->name, prefix);
}

}  // namespace

std::optional<adore::index_t> layer_in(char const* name, char const* prefix) {
  std::string_view const text(name);
  if (!text.starts_with(prefix)) return std::nullopt;
  adore::index_t layer = -1;
  char const* const end = text.data() + text.size();
  auto const read = std::from_chars(text.data() + std::strlen(prefix), end, layer);
  if (read.ec != std::errc{} || read.ptr != end || layer < 0) return std::nullopt;
  return layer;
}

std::optional<adore::index_t> weights_layer(ggml_tensor const* node) {
  if (node->op != GGML_OP_SOFT_MAX) return std::nullopt;
  return layer_in(node->name, "kq_soft_max-");
}
std::optional<adore::index_t> key_write_layer(ggml_tensor const* node) {
  return write_layer(node, "cache_k_l");
}
std::optional<adore::index_t> value_write_layer(ggml_tensor const* node) {
  return write_layer(node, "cache_v_l");
}

bool attention_reader::on_node(ggml_tensor* node, bool asks, void* reader) noexcept {
  auto& self = *static_cast<attention_reader*>(reader);
  bool const writes_first_keys = key_write_layer(node) == adore::index_t{0};
  std::optional<adore::index_t> const layer =
      self.reads_weights_ ? weights_layer(node) : std::nullopt;
  if (asks) return (writes_first_keys || layer) && !self.failure_;
  try {
    if (writes_first_keys) self.read_cells(node->src[1]);
    if (layer) self.sum_weights(*layer, node);
  } catch (...) {
    self.failure_ = std::current_exception();
  }
  return true;
}

void attention_reader::rethrow() {
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void attention_reader::read_cells(ggml_tensor const* cells) {
  cells_.resize(static_cast<std::size_t>(cells->ne[0]));
  ggml_backend_tensor_get(cells, cells_.data(), 0, ggml_nbytes(cells));
  on_cells_(cells_);
}

void attention_reader::sum_weights(adore::index_t layer, ggml_tensor const* weights) {
  auto const cells = static_cast<std::size_t>(weights->ne[0]);
  auto const tokens = static_cast<std::size_t>(weights->ne[1]);
  auto const heads = static_cast<std::size_t>(weights->ne[2]);
  auto const* from = static_cast<float const*>(weights->data);
  if (!ggml_backend_buffer_is_host(weights->buffer)) {
    copy_.resize(cells * tokens * heads);
    ggml_backend_tensor_get(weights, copy_.data(), 0, ggml_nbytes(weights));
    from = copy_.data();
  }
  sums_.assign(tokens * cells, 0.0F);
  for (std::size_t head = 0; head < heads; ++head) {
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += from[head * sums_.size() + i];
  }
  on_weights_(
      layer,
      {sums_.data(), static_cast<adore::index_t>(tokens), 1, static_cast<adore::index_t>(cells)});
}

}  // namespace llama_cpp_example
