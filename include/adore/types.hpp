// SPDX-License-Identifier: Apache-2.0
// The words of the library as types: positions, scopes, shapes, and what a policy is shown of a
// slot and of its lane.
#pragma once

#include "adore/host_device.hpp"

#include <cstdint>
#include <limits>

namespace adore {

using index_t = std::int32_t;     ///< counts and indices of slots, heads, layers, rows
using position_t = std::int32_t;  ///< arrival number of a token in its sequence, 0-based

inline constexpr position_t no_position = -1;  ///< stands in a slot that holds no token
inline constexpr position_t last_position = std::numeric_limits<position_t>::max() - 1;

/// How a guest's position stands in its slot: a released token that is back for a while (rebuilt or
/// restored) is attended, but is no candidate for release, and a number below `no_position` says
/// so. Its own inverse.
ADORE_HOST_DEVICE constexpr position_t guest_mark(position_t position) noexcept {
  return -2 - position;
}
ADORE_HOST_DEVICE constexpr bool is_guest(position_t in_slot) noexcept {
  return in_slot < no_position;
}
/// The position of whoever is in a slot, token or guest; `no_position` if it is free.
ADORE_HOST_DEVICE constexpr position_t position_in_slot(position_t in_slot) noexcept {
  return is_guest(in_slot) ? guest_mark(in_slot) : in_slot;
}

inline constexpr index_t unbounded = std::numeric_limits<index_t>::max();  ///< a budget: no limit

/// Priority of a slot that is released at the end of the step even when there is room for it.
inline constexpr float keep_never = -std::numeric_limits<float>::infinity();

/// How far one kept set reaches: over the whole sequence, one layer, or one KV head of one layer.
enum class scope : std::uint8_t { model, layer, kv_head };
constexpr char const* word_of(scope reach) noexcept {
  switch (reach) {
    case scope::model:
      return "model";
    case scope::layer:
      return "layer";
    case scope::kv_head:
      return "kv_head";
  }
  return nullptr;
}

/// How the probabilities of the query heads that share a KV head become that head's weight.
enum class gqa_reduction : std::uint8_t { sum, mean, max };

/// Which number RoPE is given for a token: its position in the text, or its rank among the
/// tokens that are attended together with it.
enum class position_scheme : std::uint8_t { original, cache_index };
constexpr char const* word_of(position_scheme scheme) noexcept {
  switch (scheme) {
    case position_scheme::original:
      return "original";
    case position_scheme::cache_index:
      return "cache_index";
  }
  return nullptr;
}

/// Sizes of a cache, in the order in which its data are indexed; `channels` varies fastest.
struct kv_shape {
  index_t sequences = 1;
  index_t layers = 1;
  index_t kv_heads = 1;
  index_t slots = 1;
  index_t channels = 1;
  friend constexpr bool operator==(kv_shape const&, kv_shape const&) = default;
};

/// What a policy sees of a slot.
struct slot_view {
  position_t position;
  position_t rotary_position;  ///< equal to `position` unless the policy numbers tokens otherwise
};

/// What a policy sees of the lane that the slot belongs to.
struct lane_view {
  position_t newest;         ///< newest token of the sequence, the query of this step
  index_t occupied;          ///< tokens in the lane, the new ones included
  index_t budget;            ///< tokens that stay after the step
  index_t layer;             ///< 0 in scope model
  index_t kv_head;           ///< 0 in the scopes model and layer
  std::uint64_t seed;        ///< of the sequence, whatever batch row it occupies
  bool ends_prompt = false;  ///< true in the one selection that follows a dense prompt
};

/// State of a policy that keeps none. Storing it costs nothing.
struct no_state {};

}  // namespace adore
