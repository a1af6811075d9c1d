// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/mask_writer.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace llama_cpp_example {

ggml_tensor* mask_of(ggml_tensor const* node) {
  if (node->op == GGML_OP_SOFT_MAX) return node->src[1];
  return node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[3] : nullptr;
}

void mask_writer::begin(std::vector<adore::position_t> cached,
                        std::span<adore::position_t const> positions,
                        adore::index_t rebuilt) {
  rebuilt_ = rebuilt;
  cached_ = std::move(cached);
  positions_.assign(positions.begin(), positions.end());
  placed_ = false;
  written_.clear();
}

void mask_writer::placed(std::span<std::int64_t const> cells) {
  token_in_.assign(cached_.size(), -1);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    token_in_.at(static_cast<std::size_t>(cells[i])) = static_cast<std::int64_t>(i);
  }
  placed_ = cells.size() == positions_.size();
}

void mask_writer::before(ggml_tensor const* node) noexcept {
  if (rebuilt_ == 0 || failure_) return;
  ggml_tensor* const mask = mask_of(node);
  if (mask == nullptr || std::find(written_.begin(), written_.end(), mask) != written_.end()) {
    return;
  }
  try {
    write(mask);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

/// Whether the query of a step's token sees what is in a cell.
bool mask_writer::sees(std::size_t token, std::size_t cell) const {
  std::int64_t const other = token_in_[cell];
  adore::position_t const p =
      other >= 0 ? positions_[static_cast<std::size_t>(other)] : cached_[cell];
  if (p == adore::no_position) return false;
  auto const first_new = static_cast<std::size_t>(rebuilt_);
  if (token >= first_new || mask_ == adore::rebuild_mask::position_causal) {
    return p <= positions_[token];
  }
  if (mask_ == adore::rebuild_mask::none || other < 0) return true;
  return static_cast<std::size_t>(other) < first_new && p <= positions_[token];
}

void mask_writer::write(ggml_tensor* mask) {
  auto const cells = static_cast<std::size_t>(mask->ne[0]);
  auto const rows = static_cast<std::size_t>(mask->ne[1]);
  bool const half = mask->type == GGML_TYPE_F16;
  if (!placed_ || (!half && mask->type != GGML_TYPE_F32) || mask->op != GGML_OP_NONE ||
      !ggml_is_contiguous(mask) || mask->ne[2] != 1 || mask->ne[3] != 1 ||
      rows < positions_.size() || cells > cached_.size()) {
    throw std::runtime_error(std::string("the mask ") + mask->name +
                             " of this llama.cpp is no input [cells, tokens] of the whole step, so "
                             "that no token can come back");
  }
  constexpr float hidden = -INFINITY;
  numbers_.assign(rows * cells, hidden);
  for (std::size_t token = 0; token < positions_.size(); ++token) {
    for (std::size_t cell = 0; cell < cells; ++cell) {
      if (sees(token, cell)) numbers_[token * cells + cell] = 0.0F;
    }
  }
  void const* from = numbers_.data();
  if (half) {
    halves_.resize(numbers_.size());
    ggml_fp32_to_fp16_row(
        numbers_.data(), halves_.data(), static_cast<std::int64_t>(numbers_.size()));
    from = halves_.data();
  }
  ggml_backend_tensor_set(mask, from, 0, ggml_nbytes(mask));
  written_.push_back(mask);
}

}  // namespace llama_cpp_example
