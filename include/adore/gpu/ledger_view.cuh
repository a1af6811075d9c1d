// SPDX-License-Identifier: Apache-2.0
// The books of a cache as kernels see them: raw pointers into device memory, passed by value, so
// that a captured graph replays with whatever the previous step wrote there.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_layout.hpp"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// What the books say of a lane besides its slots.
struct lane_books {
  index_t occupied = 0;  ///< tokens kept
  index_t extent = 0;    ///< slots from here on were never used
  index_t budget = 0;
};

/// What the books say of a row. A row without a sequence has `count` 0.
struct row_books {
  position_t next = 0;     ///< position of the next token = tokens seen
  index_t count = 0;       ///< new tokens of this step, 0..max_new; the engine's to write
  std::uint64_t seed = 0;  ///< of the sequence
};

/// A token that left a lane, as the host finds it in the ring.
struct alignas(16) released_entry {
  std::uint64_t number;         ///< of the entry, from 1: 0 means never written
  index_t row, lane;            ///< see `ledger_view::extent_of`
  position_t position, newest;  ///< ... and the newest token of the row at that moment
  /// Again, in the other half: the device writes 16 bytes at a time, and the host may read between.
  std::uint64_t number_again;
};

/// A ring of the last `capacity` releases of all lanes; `capacity` 0 keeps none.
struct ring_view {
  released_entry* entries = nullptr;
  unsigned long long* written = nullptr;  // entries since the beginning
  unsigned capacity = 0;
};

/// A token that leaves a lane, and the slot where its K and V lie until another takes it.
struct departure {
  position_t position;
  index_t slot;
};
inline constexpr index_t most_departures = 40;  ///< of a row and decision that are noted

/// Which tokens of each lane leave, in the order in which they do; device memory.
struct victims_view {
  departure* tokens = nullptr;  // [lane, most]
  index_t* counts = nullptr;    // [lane] of tokens, at most `most`
  index_t most = 0;             // a lane over its budget by more stays over it for a step
};

inline constexpr index_t most_new_tokens = 16;  ///< of one row in one step, on the device

/// What is remembered of released tokens, so that they can come back.
struct past_view {
  std::uint8_t* released = nullptr;  // [row, token] 1: has left the cache, and may come back
  float* priorities = nullptr;      // [row, token] a controller's score, or the last before release
  index_t tokens = 0;               // of the longest sequence; 0: nothing is remembered
  departure* departures = nullptr;  // [row, most_departures], for whoever copies K and V away
  unsigned* departed = nullptr;     // [row] how many since that was done
};

/// Stands in a slot that is set aside for guests while there is none: a guest from after the end of
/// the sequence, whom nobody sees.
inline constexpr position_t no_guest = guest_mark(last_position);

/// The ledger's arrays.
///
/// A slot that holds position p with
///     0 <= p < next               keeps a token,
///     next <= p < next + count    is where this step's token number p - next belongs,
///     p >= next + count           is reserved for a later token,
///     p = no_position             is free,
///     p < no_position             holds a guest, see `guest_mark`.
/// The decision at the end of a step reserves slots for the positions next .. next + max_new - 1 of
/// the steps to come, so that a step needs no plan from the host: who reads the ledger knows which
/// slot each new token goes to.
template <eviction_policy P>
struct ledger_view {
  position_t* positions = nullptr;          // [lane, slot]
  slot_state_of<P>* states = nullptr;       // [lane, slot]; empty state: one element
  lane_state_of<P>* lane_states = nullptr;  // [lane]; empty state: one element
  lane_books* lanes = nullptr;              // [lane]
  index_t* new_slots = nullptr;             // [lane, position % max_new] of reserved positions
  row_books* rows = nullptr;                // [row]
  unsigned* lanes_without_room = nullptr;   // how often a coming token found no slot
  unsigned char* exchange = nullptr;        // of few long lanes, see `lane_exchange`
  index_t exchange_floats = 0;              // ... of outputs
  ring_view released{};
  past_view past{};
  slot_state_of<P>* past_states = nullptr;  // [row, token], see `remembers_states`
  index_t row_count = 0, layers = 0, kv_heads = 0;
  index_t slots = 0, stride = 0;  // of a lane; neighbours in `positions` are `stride` apart
  index_t max_new = 1;
  index_t guests = 0;  // slots of a lane that only guests may use
  scope reach = scope::kv_head;

  ADORE_HOST_DEVICE constexpr index_t lane_layers() const {
    return reach == scope::model ? 1 : layers;
  }
  ADORE_HOST_DEVICE constexpr index_t lane_heads() const {
    return reach == scope::kv_head ? kv_heads : 1;
  }
  /// Lanes that a layer's attention has, one per row and KV head in every scope.
  ADORE_HOST_DEVICE constexpr index_t attended_lanes() const { return row_count * kv_heads; }
  ADORE_HOST_DEVICE constexpr index_t lanes_per_row() const { return lane_layers() * lane_heads(); }
  /// The lane that a KV head of a layer of a row belongs to; numbered as in `adore::ledger`.
  ADORE_HOST_DEVICE constexpr index_t lane(index_t row, index_t layer, index_t kv_head) const {
    index_t const l = reach == scope::model ? 0 : layer;
    index_t const h = reach == scope::kv_head ? kv_head : 0;
    return (row * lane_layers() + l) * lane_heads() + h;
  }
  /// The layers and KV heads that share a lane, such as one that the ring names.
  ADORE_HOST_DEVICE constexpr lane_extent extent_of(index_t lane) const {
    index_t const layer = lane / lane_heads() % lane_layers();
    index_t const head = lane % lane_heads();
    return {layer,
            reach == scope::model ? layers : layer + 1,
            head,
            reach == scope::kv_head ? head + 1 : kv_heads};
  }
  ADORE_HOST_DEVICE constexpr std::int64_t cell(index_t lane) const {
    return static_cast<std::int64_t>(lane) * stride;
  }
  ADORE_HOST_DEVICE constexpr slot_state_of<P>* states_of(index_t lane) const {
    return std::is_empty_v<slot_state_of<P>> ? states : states + cell(lane);
  }
  ADORE_HOST_DEVICE constexpr lane_state_of<P>* lane_state(index_t lane) const {
    return std::is_empty_v<lane_state_of<P>> ? lane_states : lane_states + lane;
  }
};

static_assert(sizeof(released_entry) == 32);

/// Whether the state of a new token is written before its step's attention. That of others begins
/// empty in the decision that ends the step.
template <eviction_policy P>
inline constexpr bool comes_with_state = scores_tokens<P> || reads_tokens<P>;

/// Whether the last state of a released token is remembered beside its priority, from which it does
/// not follow. A controller's score says all that comes back with a token.
template <eviction_policy P>
inline constexpr bool remembers_states = !std::is_empty_v<slot_state_of<P>> && !scores_tokens<P>;

/// What a policy sees of the slot of a token. Rotary positions are those of the text, unless the
/// policy numbers tokens itself.
template <eviction_policy P>
ADORE_HOST_DEVICE constexpr slot_view shown_slot(P const& policy,
                                                 position_t position,
                                                 slot_state_of<P> const& state) {
  if constexpr (numbers_tokens<P>) {
    return {position, policy.rotary_position(state)};
  } else {
    return {position, position};
  }
}

}  // namespace adore::gpu
