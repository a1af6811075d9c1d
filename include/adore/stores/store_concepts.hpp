// SPDX-License-Identifier: Apache-2.0
// What an engine's K/V store must offer, and what it may offer.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// Tokens that leave one lane: `layer` and `kv_head` are -1 where the lane spans all of them.
struct released_positions {
  index_t row, layer, kv_head;
  std::span<position_t const> positions;  ///< ascending
  /// Where they were, in the same order, if the plan chose the slots; a `paging_store` may be given
  /// slots alone, in which nothing stayed.
  std::span<index_t const> slots{};
};

/// What every engine can do. `release` returns how many tokens' memory really came free: with
/// granule() = 1 as many as it is told; in a paged store none until a page is empty and no other
/// row holds it, then all granule() of it.
template <class S>
concept kv_store = requires(S& store, S const& same, released_positions const& tokens) {
  { same.shape() } -> std::same_as<kv_shape>;    // slots: numbers that a token may get in a lane
  { same.capacity() } -> std::same_as<index_t>;  // tokens that fit in a lane, new ones included
  { same.granule() } -> std::same_as<index_t>;   // tokens that come free together
  { S::finest_scope } -> std::convertible_to<scope>;
  { store.release(tokens) } -> std::same_as<index_t>;
};

/// A store whose K/V can be addressed by slot: the plan chooses the slots. `keys(layer)` and
/// `values(layer)` return a `kv_view` or another `slot_addressed` view, or a tensor that
/// `kv_view_of` turns into one.
template <class S>
concept slot_store = kv_store<S> && requires(S& store, index_t layer) {
  kv_view_of(store.keys(layer));
  kv_view_of(store.values(layer));
};

/// A store that can give two rows the same tokens; one addressed by slot needs it only if it can do
/// better than to copy a row.
template <class S>
concept forking_store = kv_store<S> && requires(S& store, index_t row) {
  store.fork(row, row);
};

/// A store addressed by slot in which a slot has memory only while a token is there: pages. The
/// plan chooses slots as in any other; the store is told before they are written, and by `release`
/// with slots when nothing is in them any more.
///
/// `reserve` names slots of one lane (`layer` and `kv_head` as in `released_positions`) that are
/// about to be written. Afterwards each has memory that no other row sees: one whose memory is
/// shared after a `fork` gets a copy. It throws std::length_error, with nothing changed, if there
/// are too few free pages. A step reserves lane by lane: if a later lane has no room, the step does
/// not begin and what was reserved is released, but copies that were made by then stay. Slots may
/// be reserved twice, and released without having been reserved. Free slots that a row `owns` are
/// given to new tokens first. `fork` onto a row that holds pages throws.
template <class S>
concept paging_store = slot_store<S> && forking_store<S> &&
    requires(S& store, S const& same, index_t i, std::span<index_t const> slots) {
  store.reserve(i, i, i, slots);                   // row, layer, kv_head, slots
  { same.owns(i, i) } -> std::same_as<bool>;       // row, slot: writing it takes no page
  { same.free_pages() } -> std::same_as<index_t>;  // of granule() slots each, for all rows
};

/// Where the tokens of a lane are after they have been moved; `layer` and `kv_head` are -1 where
/// the lane spans all of them.
struct moved_lane {
  index_t row, layer, kv_head;
  std::vector<index_t> new_slot_of;  ///< [old slot], -1 where no token was
};

/// A store that can move a row's tokens together, and then reports where they are.
template <class S>
concept compacting_store = kv_store<S> && requires(S& store, index_t row) {
  { store.compact(row) } -> std::same_as<std::vector<moved_lane>>;
};

/// A store that can turn cached keys to other rotary positions: [first, last) by `delta`.
template <class S>
concept shifting_store = kv_store<S> && requires(S& store, index_t row, position_t position) {
  store.shift(row, position, position, position);
};

/// A store through which released tokens can be computed again with the next step.
template <class S>
concept rebuilding_store = kv_store<S> &&
    requires(S& store, index_t row, std::span<position_t const> positions) {
  { store.rebuild(row, positions) } -> std::same_as<bool>;
};

/// A store that can bring released tokens back as they were.
template <class S>
concept restoring_store = kv_store<S> &&
    requires(S& store, index_t row, std::span<position_t const> positions) {
  { store.restore(row, positions) } -> std::same_as<bool>;
};

/// Turns every unmet requirement into one sentence with the missing signature.
template <class S>
struct checked_store {
  static_assert(
      requires(S const& s) {
        { s.shape() } -> std::same_as<kv_shape>;
      },
      "adore: a store needs 'kv_shape shape() const': sequences, layers, KV heads, slots "
      "per lane, channels");
  static_assert(
      requires(S const& s) {
        { s.capacity() } -> std::same_as<index_t>;
      },
      "adore: a store needs 'index_t capacity() const', the tokens that fit in a lane");
  static_assert(
      requires(S const& s) {
        { s.granule() } -> std::same_as<index_t>;
      },
      "adore: a store needs 'index_t granule() const', the tokens that come free together, "
      "1 unless it is paged");
  static_assert(
      requires {
        { S::finest_scope } -> std::convertible_to<scope>;
      },
      "adore: a store needs 'static constexpr scope finest_scope', how finely it can "
      "release");
  static_assert(
      requires(S & s, released_positions const& t) {
        { s.release(t) } -> std::same_as<index_t>;
      },
      "adore: a store needs 'index_t release(released_positions const&)', which returns how many "
      "tokens really came free");
  static_assert(
      !requires(S & s) { s.keys(0); } || slot_store<S>,
      "adore: a store with 'keys' is addressed by slot and needs "
      "'keys(index_t layer)' and 'values(index_t layer)' that give a kv_view or a tensor "
      "with 'adore_kv_view'");
  static_assert(
      !requires(S & s, std::span<index_t const> slots) { s.reserve(0, 0, 0, slots); } ||
          paging_store<S>,
      "adore: a store with 'reserve' is paged and needs 'void fork(index_t from, index_t to)', "
      "'bool owns(index_t row, index_t slot) const' and 'index_t free_pages() const' besides "
      "'keys' and 'values'");
  // without it the cache would never call a `reserve` of another spelling
  static_assert(
      !(
          requires(S const& s) { s.free_pages(); } || requires(S const& s) { s.owns(0, 0); }) ||
          paging_store<S>,
      "adore: a store with 'free_pages' or 'owns' is paged and needs 'void reserve(index_t row, "
      "index_t layer, index_t kv_head, std::span<index_t const> slots)' and 'void fork(index_t "
      "from, index_t to)', both 'owns(row, slot)' and 'free_pages()', 'keys' and 'values'");
  using type = S;
};

}  // namespace adore
