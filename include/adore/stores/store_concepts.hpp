// SPDX-License-Identifier: Apache-2.0
// What an engine's K/V store must offer, and what it may offer.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

namespace adore {

/// Tokens that leave one lane: `layer` and `kv_head` are -1 where the lane spans all of them.
struct released_positions {
  index_t row, layer, kv_head;
  std::span<position_t const> positions;  ///< ascending
};

/// What every engine can do. `release` returns how many tokens really came free: in a paged store
/// none, until a page is empty.
template <class S>
concept kv_store = requires(S& store, S const& same, released_positions const& tokens) {
  { same.shape() } -> std::same_as<kv_shape>;    // slots: numbers that a token may get in a lane
  { same.capacity() } -> std::same_as<index_t>;  // tokens that fit in a lane, new ones included
  { same.granule() } -> std::same_as<index_t>;   // tokens that come free together
  { S::finest_scope } -> std::convertible_to<scope>;
  { store.release(tokens) } -> std::same_as<index_t>;
};

/// A store whose K/V can be addressed by slot: the plan chooses the slots. `keys(layer)` and
/// `values(layer)` return a `kv_view` or a tensor that `kv_view_of` turns into one.
template <class S>
concept slot_store = kv_store<S> && requires(S& store, index_t layer) {
  kv_view_of(store.keys(layer));
  kv_view_of(store.values(layer));
};

/// A store that chooses slots itself and can give two rows the same tokens.
template <class S>
concept forking_store = kv_store<S> && requires(S& store, index_t row) {
  store.fork(row, row);
};

/// A store that can move its tokens together, and then reports where they are.
template <class S>
concept compacting_store = kv_store<S> && requires(S& store, index_t row) {
  store.compact(row);
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
  using type = S;
};

}  // namespace adore
