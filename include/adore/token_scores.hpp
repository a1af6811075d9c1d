// SPDX-License-Identifier: Apache-2.0
// A controller's logits on their way to the slots of a lane.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adore {

/// One output's logits of the tokens first, first + 1, ...
struct token_scores {
  position_t first = 0;
  std::span<float const> logits{};

  bool has(position_t p) const noexcept {
    return p >= first && p - first < static_cast<index_t>(logits.size());
  }
  float of(position_t p) const { return logits[static_cast<std::size_t>(p - first)]; }
};

/// A controller has one output, or one for each layer, or one for each KV head of all layers.
ADORE_HOST_DEVICE constexpr bool is_output_count(index_t outputs,
                                                 index_t layers,
                                                 index_t kv_heads) noexcept {
  return outputs == 1 || outputs == layers || outputs == layers * kv_heads;
}
/// The output that concerns a KV head of a layer.
ADORE_HOST_DEVICE constexpr index_t output_of(
    index_t outputs, index_t layers, index_t kv_heads, index_t layer, index_t kv_head) noexcept {
  if (outputs == 1) return 0;
  return outputs == layers ? layer : layer * kv_heads + kv_head;
}

/// @throws std::logic_error unless the scores of a row are [output, token] with as many outputs as
///         the cache has layers, or KV heads in all layers, or one; and no token of the future
inline void check_scores(row_tokens const& row, kv_shape const& shape, position_t next) {
  if (row.scores.empty()) return;
  bool const known = is_output_count(row.outputs, shape.layers, shape.kv_heads);
  auto const outputs = static_cast<std::size_t>(row.outputs);
  if (!known || row.scores.size() % outputs != 0 ||
      row.scores.size() / outputs > static_cast<std::size_t>(next + row.count)) {
    throw std::logic_error(
        "adore: row " + std::to_string(row.row) + " brings " + std::to_string(row.scores.size()) +
        " scores of " + std::to_string(row.outputs) +
        " outputs; [output, token] is needed, with 1, " + std::to_string(shape.layers) + " or " +
        std::to_string(shape.layers * shape.kv_heads) +
        " outputs and no more tokens than the sequence has");
  }
}

/// The part of a row's scores that concerns the lanes of a layer and KV head.
///
/// @param newest  the row's last new token
inline token_scores scores_of(row_tokens const& row,
                              kv_shape const& shape,
                              index_t layer,
                              index_t kv_head,
                              position_t newest) {
  std::size_t const tokens = row.scores.size() / static_cast<std::size_t>(row.outputs);
  index_t const output = output_of(row.outputs, shape.layers, shape.kv_heads, layer, kv_head);
  return {newest + 1 - static_cast<position_t>(tokens),
          row.scores.subspan(static_cast<std::size_t>(output) * tokens, tokens)};
}

/// Gives the policy the scores of all tokens and guests in the lane that have one.
template <scores_tokens P>
void give_scores(P const& policy, lane_slots<P> const& lane, token_scores const& scores) {
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const p = position_in_slot(lane.positions[s]);
    if (p >= 0 && scores.has(p)) policy.score(lane.state(s), scores.of(p));
  }
}

/// The scores of a step's new tokens while nobody knows their slots: a store that chooses slots
/// itself reports them later.
class waiting_scores {
 public:
  void begin() noexcept { rows_.clear(); }
  /// @param next  the row's first new position
  void keep(row_tokens const& row, position_t next) {
    if (row.scores.empty()) return;
    auto const outputs = static_cast<std::size_t>(row.outputs);
    std::size_t const tokens = row.scores.size() / outputs;
    std::size_t const fresh = std::min(tokens, static_cast<std::size_t>(row.count));
    waiting_row kept{row.row, row.outputs, next + row.count - static_cast<index_t>(fresh), {}};
    for (std::size_t o = 0; o < outputs; ++o) {
      auto const newest = row.scores.subspan((o + 1) * tokens - fresh, fresh);
      kept.logits.insert(kept.logits.end(), newest.begin(), newest.end());
    }
    rows_.push_back(std::move(kept));
  }
  /// The scores of a row's new tokens for the lanes of a layer and KV head; empty without any.
  token_scores of(index_t row, kv_shape const& shape, index_t layer, index_t kv_head) const {
    for (waiting_row const& kept : rows_) {
      if (kept.row != row) continue;
      std::size_t const tokens = kept.logits.size() / static_cast<std::size_t>(kept.outputs);
      index_t const output = output_of(kept.outputs, shape.layers, shape.kv_heads, layer, kv_head);
      return {kept.first,
              std::span(kept.logits).subspan(static_cast<std::size_t>(output) * tokens, tokens)};
    }
    return {};
  }

 private:
  struct waiting_row {
    index_t row, outputs;
    position_t first;
    std::vector<float> logits;  // [output, token]
  };
  std::vector<waiting_row> rows_;
};

}  // namespace adore
