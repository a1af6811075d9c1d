// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer's factorised attention patterns, as masks over a full cache.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// `strided`: the last tokens, and those at multiples of the stride back. `fixed`: the own block,
/// and the last `summary` columns of each block.
enum class sparse_pattern : std::uint8_t { strided, fixed };
constexpr char const* word_of(sparse_pattern pattern) noexcept {
  switch (pattern) {
    case sparse_pattern::strided:
      return "strided";
    case sparse_pattern::fixed:
      return "fixed";
  }
  return nullptr;
}

/// Which of the two factors a head gets: half the heads each, both, or by layer in turn.
enum class sparse_heads : std::uint8_t { split, merged, interleaved };
constexpr char const* word_of(sparse_heads heads) noexcept {
  switch (heads) {
    case sparse_heads::split:
      return "split";
    case sparse_heads::merged:
      return "merged";
    case sparse_heads::interleaved:
      return "interleaved";
  }
  return nullptr;
}

/// Whether the local factor spans stride + 1 tokens (the paper's formula) or stride (the code).
enum class local_span : std::uint8_t { code, paper };
constexpr char const* word_of(local_span span) noexcept {
  switch (span) {
    case local_span::code:
      return "code";
    case local_span::paper:
      return "paper";
  }
  return nullptr;
}

/// Hides keys outside the pattern. Nothing can be released: with the strided pattern every token is
/// needed again by a later query.
///
/// Source: Child et al., arXiv:1904.10509, section 4.2; policies.md 4.2.
/// State:  none.
struct sparse_transformer {
  index_t stride = 16;
  sparse_pattern pattern = sparse_pattern::strided;
  sparse_heads heads = sparse_heads::split;
  local_span local = local_span::code;
  index_t summary = 1;  ///< columns per block that all later queries see; pattern `fixed` only

  static constexpr char const* name = "sparse_transformer";
  static constexpr char const* budget_field = "";
  static constexpr scope default_scope = scope::model;
  static constexpr bool fixed_priority = true;
  static constexpr index_t priority_levels = 1;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return unbounded; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view) const noexcept {
    return 0.0F;
  }
  ADORE_HOST_DEVICE constexpr bool sees_local(position_t query, position_t key) const noexcept {
    if (pattern == sparse_pattern::fixed) return query / stride == key / stride;
    return query - key < stride + (local == local_span::paper ? 1 : 0);
  }
  ADORE_HOST_DEVICE constexpr bool sees_far(position_t query, position_t key) const noexcept {
    if (pattern == sparse_pattern::fixed) return key % stride >= stride - summary;
    return (query - key) % stride == 0;
  }
  ADORE_HOST_DEVICE constexpr bool sees(slot_view query,
                                        no_state const&,
                                        slot_view key,
                                        no_state const&,
                                        head_view head) const noexcept {
    if (query.position == key.position) return true;  // a query always attends itself
    bool const near = sees_local(query.position, key.position);
    bool const far = sees_far(query.position, key.position);
    if (heads == sparse_heads::merged) return near || far;
    bool const second = heads == sparse_heads::interleaved ? head.layer % 2 == 1
                                                           : head.head >= (head.heads + 1) / 2;
    return second ? far : near;
  }
  constexpr void validate() const {
    require_field(stride >= 1, "sparse_transformer.stride", stride, "must be at least 1");
    require_field(summary >= 1 && summary <= stride,
                  "sparse_transformer.summary",
                  summary,
                  "must lie in [1, stride]");
  }

  static constexpr sparse_transformer of_budget(index_t) { return {}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("stride", self.stride);
    visit("pattern", self.pattern);
    visit("heads", self.heads);
    visit("local", self.local);
    visit("summary", self.summary);
  }
};

static_assert(masks_attention<sparse_transformer> && described<sparse_transformer>);

}  // namespace adore
