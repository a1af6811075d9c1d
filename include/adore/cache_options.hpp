// SPDX-License-Identifier: Apache-2.0
// How a cache is set up, apart from its store and its policy; and what a step is made of.
#pragma once

#include "adore/eviction/compact.hpp"
#include "adore/positions/rope.hpp"
#include "adore/rebuild/schedule.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <limits>
#include <optional>
#include <span>

namespace adore {

/// How a prompt enters: dense attention over all of it, then one selection; or in chunks, with a
/// selection after each; or token by token.
enum class prompt_mode : std::uint8_t { full_then_select, chunked, streamed };

struct cache_options {
  std::optional<scope> reach{};     ///< default: the policy's
  bool coarsest_available = false;  ///< a store that cannot do `reach` may do what it can instead
  std::optional<position_scheme> positions{};  ///< default: the policy's, else original
  gqa_reduction reduction = gqa_reduction::sum;
  index_t max_new = 1;  ///< new tokens per step and row: 1, a chunk's size, or a draft's length
  prompt_mode prompt = prompt_mode::full_then_select;
  compaction compact = compaction::slot_reuse;
  /// The cache turns queries and keys itself; absent: the engine does, by `positions()`. Needed for
  /// cache_index positions, which change while a token is cached.
  std::optional<rope> rotation{};
  float attention_scale = 0.0F;  ///< factor of q.k; 0: 1 / sqrt(channels)
  std::size_t staging_limit_bytes = std::numeric_limits<std::size_t>::max();  ///< for dense prompts
  rebuild_options rebuild{};  ///< released tokens that come back; needs scope model
};

/// One row's part of a step.
struct row_tokens {
  index_t row;
  index_t count = 1;
  /// Vocabulary ids, for policies that read them and for tokens that may be rebuilt; else empty.
  std::span<index_t const> tokens{};
  /// A controller's logits, [output, token], of the sequence's newest tokens up to the last new
  /// one: of the new ones, or of more whose score has changed. For policies that are given scores.
  std::span<float const> scores{};
  index_t outputs = 1;  ///< 1: the same for all lanes; layers; or layers x kv_heads
};

/// ... and where its tokens stand among those of the whole step.
struct row_step {
  index_t row, count, first;  ///< first: number of its first token in the step
};

/// What one query paid attention to in one KV head: shown to whoever watches `attend`.
struct attention_record {
  index_t query;  ///< number of the token in the step
  index_t row, layer, kv_head;
  std::span<position_t const> positions;  ///< attended or hidden, ascending
  std::span<float const> weights;         ///< reduced over the query heads; 0: hidden
};

/// Watches nothing.
struct no_watcher {
  void operator()(attention_record const&) const noexcept {}
};

}  // namespace adore
