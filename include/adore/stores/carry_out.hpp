// SPDX-License-Identifier: Apache-2.0
// Carries out in a store what the books have decided: released tokens leave, the rest may move
// together.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/compact.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/kv_view.hpp"
#include "adore/stores/store_concepts.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// A lane as stores are told of it, without tokens.
template <eviction_policy P>
released_positions place_of(ledger<P> const& books, index_t lane) {
  scope const reach = books.reach();
  return {books.row_of(lane),
          reach == scope::model ? -1 : books.layer_of(lane),
          reach == scope::kv_head ? books.head_of(lane) : -1,
          {},
          {}};
}

/// Tells a store which tokens of a lane have left; positions ascending, slots in the same order.
template <kv_store Store, eviction_policy P>
index_t release_from(Store& store,
                     ledger<P> const& books,
                     index_t lane,
                     std::span<position_t const> positions,
                     std::span<index_t const> slots) {
  released_positions tokens = place_of(books, lane);
  tokens.positions = positions;
  tokens.slots = slots;
  return store.release(tokens);
}

/// Moves what a lane holds to its first slots, in all layers and heads that share the lane.
template <slot_store Store, eviction_policy P>
void compact_lane(
    Store& store, ledger<P>& books, slot_order& order, index_t lane, compaction kind) {
  auto const kept = order.slots(lane);
  kv_shape const& shape = books.shape();
  lane_extent const extent = books.extent_of(lane);
  for (index_t layer = extent.first_layer; layer < extent.end_layer; ++layer) {
    for (index_t head = extent.first_head; head < extent.end_head; ++head) {
      compact(kind, kv_view_of(store.keys(layer)), books.row_of(lane), head, kept);
      compact(kind, kv_view_of(store.values(layer)), books.row_of(lane), head, kept);
    }
  }
  std::vector<index_t> new_slot_of(static_cast<std::size_t>(shape.slots), -1);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    new_slot_of[static_cast<std::size_t>(kept[i])] = static_cast<index_t>(i);
  }
  books.move(lane, new_slot_of);
  order.assign(lane, books.positions(lane));
}

/// After decisions: brings order and store in line with the books' released tokens.
template <kv_store Store, eviction_policy P>
void carry_out(Store& store, ledger<P>& books, slot_order& order, compaction kind) {
  std::vector<released_token> left;
  std::vector<position_t> positions;
  std::vector<index_t> slots;
  auto const released = books.released();
  for (std::size_t i = 0; i < released.size();) {
    index_t const lane = released[i].lane;
    left.clear();
    positions.clear();
    slots.clear();
    for (; i < released.size() && released[i].lane == lane; ++i) left.push_back(released[i]);
    std::sort(left.begin(), left.end(), [](released_token const& a, released_token const& b) {
      return a.position < b.position;
    });
    for (released_token const& gone : left) {
      order.remove(lane, gone.position);
      positions.push_back(gone.position);
      slots.push_back(gone.slot);
    }
    release_from(store, books, lane, positions, slots);
    if constexpr (slot_store<Store> && !paging_store<Store>) {
      if (kind != compaction::slot_reuse) compact_lane(store, books, order, lane, kind);
    }
  }
}

/// Copies all slots of one row to another, in one layer's K or V.
template <slot_addressed View>
void copy_row(View view, index_t from, index_t to) {
  for (index_t head = 0; head < view.kv_heads; ++head) {
    for (index_t slot = 0; slot < view.slots; ++slot) {
      for (index_t c = 0; c < view.channels; ++c) {
        view(to, head, slot)[c * view.channel_stride] =
            view(from, head, slot)[c * view.channel_stride];
      }
    }
  }
}

}  // namespace adore
