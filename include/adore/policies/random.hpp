// SPDX-License-Identifier: Apache-2.0
// Random eviction: the lower bound that every policy has to beat.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"
#include "adore/philox.hpp"

namespace adore {

/// Keeps a uniform sample of `size` of all tokens seen: each set is equally likely.
///
/// Source:  policies.md 17.6 (`reservoir`). A priority drawn once per token makes streamed,
///          chunked and one-shot selection agree (Theorem S).
/// State:   none; on the host a heap. Deterministic in the sequence's seed, layer and head.
struct random_reservoir {
  index_t size = 512;

  static constexpr char const* name = "random_reservoir";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::kv_head;
  static constexpr bool fixed_priority = true;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot, lane_view lane) const noexcept {
    std::uint32_t const key = stream_key(lane.seed, lane.layer, lane.kv_head);
    return unit_float(
        static_cast<std::uint32_t>(philox(key, static_cast<std::uint32_t>(slot.position))));
  }
  constexpr void validate() const {
    require_field(size >= 0, "random_reservoir.size", size, "must not be negative");
  }

  static constexpr random_reservoir of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
  }
};

/// Releases a token drawn anew at every step, each one with equal chance, the newest too.
///
/// Source: policies.md 17.6 (`uniform_victim`): a token survives k releases with chance
///         (size / (size + 1))^k, so the past fades away instead of being sampled evenly.
/// State:  none.
struct random_victim {
  index_t size = 512;

  static constexpr char const* name = "random_victim";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::kv_head;

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view slot, lane_view lane) const noexcept {
    std::uint64_t const counter =
        (static_cast<std::uint64_t>(static_cast<std::uint32_t>(lane.newest)) << 32U) |
        static_cast<std::uint32_t>(slot.position);
    std::uint32_t const key = stream_key(lane.seed, lane.layer, lane.kv_head);
    return unit_float(static_cast<std::uint32_t>(philox(key, counter)));
  }
  constexpr void validate() const {
    require_field(size >= 0, "random_victim.size", size, "must not be negative");
  }

  static constexpr random_victim of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
  }
};

static_assert(ranks_once<random_reservoir> && described<random_reservoir>);
static_assert(!ranks_once<random_victim> && described<random_victim>);

}  // namespace adore
