// SPDX-License-Identifier: Apache-2.0
// Compression into sentinel tokens: spans of text are bracketed, and only the closing bracket
// stays.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// Releases the inside of a span `open` ... `close` and its opening token once the closing one has
/// been read. Mask, positions and release schedule; the meaning is in trained embeddings.
///
/// Source:  Ren et al., arXiv:2310.08152, and the authors' code; policies.md 8.
/// Differs: spans do not nest (an `open` inside a span belongs to it). `tail` newest tokens stay
///          visible and are released only when they leave it (ours; 0 is the paper's rule).
/// State:   per slot, its part, its span and its rotary position; per lane, the spans so far.
struct sentinel {
  index_t open = -1;   ///< vocabulary id of the opening token; must be given
  index_t close = -1;  ///< vocabulary id of the closing token; must be given
  index_t tail = 0;    ///< newest tokens that stay uncompressed

  static constexpr char const* name = "sentinel";
  static constexpr char const* budget_field = "";
  static constexpr scope default_scope = scope::model;

  /// As wide as what stands beside it, so that no byte of a state is left without a value.
  enum class part : std::int32_t { ordinary, opening, closing };
  struct slot_state {
    part role = part::ordinary;
    index_t span = 0;  ///< 1-based number of the span it lies in or closes, 0: none
    position_t rotary = 0;
  };
  struct lane_state {
    index_t spans = 0;   ///< spans opened so far
    index_t closed = 0;  ///< of these, closed
    position_t ordinary = 0;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept { return unbounded; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const noexcept { return tail; }

  ADORE_HOST_DEVICE constexpr void hear(slot_state& state,
                                        lane_state& lane,
                                        slot_view,
                                        index_t token) const noexcept {
    bool const inside = lane.closed < lane.spans;
    state = {};
    if (token == open && !inside) {
      state.role = part::opening;
      state.span = ++lane.spans;
    } else if (token == close && inside) {
      state.role = part::closing;
      state.span = lane.spans;
      lane.closed = lane.spans;
    } else {
      state.span = inside ? lane.spans : 0;
    }
    bool const counts = state.role == part::ordinary;
    state.rotary = counts ? lane.ordinary : (lane.ordinary > 0 ? lane.ordinary - 1 : 0);
    lane.ordinary += counts ? 1 : 0;
  }
  ADORE_HOST_DEVICE constexpr position_t rotary_position(slot_state const& state) const noexcept {
    return state.rotary;
  }

  ADORE_HOST_DEVICE constexpr bool sees(slot_view query,
                                        slot_state const& query_state,
                                        slot_view key,
                                        slot_state const& key_state,
                                        head_view) const noexcept {
    if (query.position == key.position) return true;
    if (query_state.role == part::opening) return false;
    bool const same_span = query_state.span != 0 && query_state.span == key_state.span;
    if (query_state.role == part::closing) return same_span;
    if (key_state.role == part::closing) return true;
    if (key_state.role == part::opening) return false;
    return key_state.span == 0 || same_span || query.position - key.position < tail;
  }

  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view,
                                                  slot_state const& state,
                                                  lane_state const& lane) const noexcept {
    bool const compressed =
        state.span != 0 && state.span <= lane.closed && state.role != part::closing;
    return compressed ? keep_never : 0.0F;
  }
  constexpr void validate() const {
    require_field(open >= 0, "sentinel.open", open, "must be a vocabulary id");
    require_field(close >= 0 && close != open,
                  "sentinel.close",
                  close,
                  "must be a vocabulary id other than `open`");
    require_field(tail >= 0, "sentinel.tail", tail, "must not be negative");
  }

  static constexpr sentinel of_budget(index_t) { return {}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("open", self.open);
    visit("close", self.close);
    visit("tail", self.tail);
  }
};

static_assert(masks_attention<sentinel> && numbers_tokens<sentinel> && described<sentinel>);

/// Where to put the sentinels of a stream: a span around every `span` ordinary tokens.
struct sentinel_schedule {
  index_t span = 16;
  /// True if an opening token goes before ordinary token number `ordinary` (0-based).
  ADORE_HOST_DEVICE constexpr bool opens_before(index_t ordinary) const noexcept {
    return ordinary % span == 0;
  }
  /// True if a closing token goes after ordinary token number `ordinary`.
  ADORE_HOST_DEVICE constexpr bool closes_after(index_t ordinary) const noexcept {
    return ordinary % span == span - 1;
  }
};

}  // namespace adore
