// SPDX-License-Identifier: Apache-2.0
// The adapter: llama.cpp's KV cache as a store of adore, through llama.h alone.
#pragma once

#include <adore/stores/store_concepts.hpp>

#include <llama.h>

#include <algorithm>
#include <vector>

namespace llama_cpp_example {

/// A slot is a cell, which holds a token for all layers and heads; so heads are not told apart.
/// llama.cpp knows a token by its rotary position alone, adore by its position: the table here
/// holds both. The context has one cache for all sequences (`kv_unified`); a row is a sequence id.
class llama_store {
 public:
  static constexpr adore::scope finest_scope = adore::scope::model;
  struct cell {
    adore::position_t position = adore::no_position, rotary = adore::no_position;
  };

  llama_store(llama_context* context, adore::index_t sequences)
      : memory_(llama_get_memory(context)),
        shape_{.sequences = sequences,
               .layers = llama_model_n_layer(llama_get_model(context)),
               .slots = static_cast<adore::index_t>(llama_n_ctx(context))},
        rows_(static_cast<std::size_t>(sequences),
              std::vector<cell>(static_cast<std::size_t>(shape_.slots))) {}

  adore::kv_shape shape() const { return shape_; }
  adore::index_t capacity() const { return shape_.slots; }
  adore::index_t granule() const { return 1; }
  adore::index_t release(adore::released_positions const& tokens) {
    adore::index_t freed = 0;
    for (cell& at : row(tokens.row)) {
      if (!std::binary_search(tokens.positions.begin(), tokens.positions.end(), at.position)) {
        continue;
      }
      llama_memory_seq_rm(memory_, tokens.row, at.rotary, at.rotary + 1);
      at = {};
      ++freed;
    }
    return freed;
  }
  void fork(adore::index_t from, adore::index_t to) {
    llama_memory_seq_cp(memory_, from, to, -1, -1);
    row(to) = row(from);
  }
  /// Moves rotary positions [first, last). Rows that share cells must move together.
  void shift(adore::index_t which, adore::position_t first, adore::position_t last, int delta) {
    llama_memory_seq_add(memory_, which, first, last, delta);
    for (cell& at : row(which)) {
      if (at.rotary >= first && at.rotary < last) at.rotary += delta;
    }
  }

  /// llama_decode has put, or is about to put, a token there.
  void put(adore::index_t which, adore::index_t slot, cell token) {
    row(which)[static_cast<std::size_t>(slot)] = token;
  }
  adore::position_t next_rotary(adore::index_t which) const {
    return llama_memory_seq_pos_max(memory_, which) + 1;
  }
  std::vector<cell>& row(adore::index_t which) { return rows_[static_cast<std::size_t>(which)]; }
  adore::position_t position_at(adore::index_t which, int, int, adore::index_t slot) const {
    return rows_[static_cast<std::size_t>(which)][static_cast<std::size_t>(slot)].position;
  }

 private:
  llama_memory_t memory_;
  adore::kv_shape shape_;
  std::vector<std::vector<cell>> rows_;  // [row][cell]
};

static_assert(adore::forking_store<llama_store> && adore::shifting_store<llama_store>);

}  // namespace llama_cpp_example
