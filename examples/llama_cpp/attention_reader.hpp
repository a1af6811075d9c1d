// SPDX-License-Identifier: Apache-2.0
// Reads attention weights while llama_decode runs: llama.cpp has no interface for them, but its
// callback sees each tensor of the graph, and this relies on the names and shapes of three.
#pragma once

#include <adore/kv_view.hpp>
#include <adore/types.hpp>

#include <ggml.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace llama_cpp_example {

/// The layer in a name such as "kq_soft_max-3", if the part before the number is `prefix`.
std::optional<adore::index_t> layer_in(char const* name, char const* prefix);

/// The probabilities of a layer, [cell, token, query head], if this node computes them; flash
/// attention has no such node.
std::optional<adore::index_t> weights_layer(ggml_tensor const* node);
/// The layer whose keys (or values) this node writes into the cache. Its second source holds the
/// cells, [token] int64; the memory that it writes to is its `view_src`.
std::optional<adore::index_t> key_write_layer(ggml_tensor const* node);
std::optional<adore::index_t> value_write_layer(ggml_tensor const* node);

/// The callback of a context: `cb_eval = attention_reader::on_node`, `cb_eval_user_data` = a
/// reader.
class attention_reader {
 public:
  using cells_function = std::function<void(std::span<std::int64_t const>)>;
  using weights_function =
      std::function<void(adore::index_t layer, adore::token_view<float const>)>;

  /// @param on_cells    gets the cells of the batch's tokens, [token], before any weights come
  /// @param on_weights  gets the weights of a layer, [token, 1, cell], summed over the query heads
  attention_reader(cells_function on_cells, weights_function on_weights)
      : on_cells_(std::move(on_cells)), on_weights_(std::move(on_weights)) {}

  /// Whether the next step's weights are read; at first they are.
  void read_weights(bool reads) noexcept { reads_weights_ = reads; }
  /// A `ggml_backend_sched_eval_callback`.
  static bool on_node(ggml_tensor* node, bool asks, void* reader) noexcept;
  /// Throws what a function above threw inside the callback, whose caller is C code.
  void rethrow();

 private:
  void read_cells(ggml_tensor const* cells);
  void sum_weights(adore::index_t layer, ggml_tensor const* weights);

  cells_function on_cells_;
  weights_function on_weights_;
  bool reads_weights_ = true;
  std::vector<std::int64_t> cells_;  // [token]
  std::vector<float> copy_;          // [query head, token, cell], where the tensor is on a device
  std::vector<float> sums_;          // [token, cell]
  std::exception_ptr failure_;
};

}  // namespace llama_cpp_example
