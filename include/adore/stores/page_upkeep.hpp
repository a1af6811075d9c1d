// SPDX-License-Identifier: Apache-2.0
// Keeps a paged store in step with the books: memory for slots before they are written, none for
// slots in which nothing stayed.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/prompt_budget.hpp"
#include "adore/stores/carry_out.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

namespace adore {

/// The slots of a lane for which `wanted(what stands in the slot)` holds.
template <eviction_policy P, class Wanted>
std::vector<index_t> slots_where(ledger<P> const& books, index_t lane, Wanted&& wanted) {
  std::vector<index_t> slots;
  auto const here = books.positions(lane);
  for (std::size_t slot = 0; slot < here.size(); ++slot) {
    if (wanted(here[slot])) slots.push_back(static_cast<index_t>(slot));
  }
  return slots;
}

template <paging_store Store, eviction_policy P>
void reserve_in(Store& store,
                ledger<P> const& books,
                index_t lane,
                std::span<index_t const> slots) {
  released_positions const place = place_of(books, lane);
  store.reserve(place.row, place.layer, place.kv_head, slots);
}

/// Gives back what was reserved in a row and holds nothing: rejected drafts, guests that left or
/// never came, slots that a prompt did not need.
template <paging_store Store, eviction_policy P>
void release_unused(Store& store, ledger<P> const& books, index_t row) {
  books.for_lanes(row, [&](index_t lane) {
    auto const slots = slots_where(books, lane, [](position_t p) { return p == no_position; });
    released_positions unused = place_of(books, lane);
    unused.slots = slots;
    store.release(unused);
  });
}

/// Before the books give slots to a step's tokens: the slots that they are going to give. If these
/// are not all in the row's own pages, holes in those come first, then the lowest slots, so that
/// tokens that come together lie together and a page is filled before another one is taken.
///
/// @param guests  released tokens that may come back into each lane; those that are there may be
///                written again
/// @throws what the store throws if there is no room. Nothing is reserved then, but copies of
///         shared pages that were made for lanes before stay with their row: they hold its tokens,
///         and who shared the original may be alone with it by now
/// Cost:   O(new tokens) per lane as long as its own pages have room, otherwise O(slots log slots);
///         O(slots) besides if guests may come
template <paging_store Store, eviction_policy P>
void reserve_step(Store& store,
                  ledger<P>& books,
                  std::span<row_tokens const> rows,
                  index_t guests) {
  // a page of one token of one lane is never half full
  bool const has_holes = store.granule() > 1 || books.lanes_per_row() > 1;
  try {
    for (row_tokens const& row : rows) {
      books.for_lanes(row.row, [&](index_t lane) {
        auto const here = guests > 0 ? slots_where(books, lane, is_guest) : std::vector<index_t>{};
        index_t const released = books.next_position(row.row) - books.occupied(lane);
        index_t const come =
            std::max(std::min(guests, released) - static_cast<index_t>(here.size()), 0);
        auto const owned = [&](index_t slot) { return store.owns(row.row, slot); };
        // follows the new order
        auto const next = books.next_slots(lane, row.count + come);
        if (has_holes && !std::all_of(next.begin(), next.end(), owned)) {
          books.prefer_slots(lane, owned);
        }
        reserve_in(store, books, lane, next);
        if (!here.empty()) reserve_in(store, books, lane, here);
      });
    }
  } catch (...) {
    for (row_tokens const& row : rows) release_unused(store, books, row.row);
    throw;
  }
}

/// Before a dense prompt: as many first slots of each lane as it may keep tokens, and the last one,
/// through which released tokens pass into a tier.
///
/// @throws what the store throws if there is no room, with nothing reserved
template <paging_store Store, eviction_policy P>
void reserve_prompt(Store& store, ledger<P> const& books, row_tokens const& whole, bool to_tier) {
  try {
    books.for_lanes(whole.row, [&](index_t lane) {
      index_t const most = std::min(most_of_prompt(books, lane, whole.count), books.slots());
      std::vector<index_t> slots(static_cast<std::size_t>(most));
      std::iota(slots.begin(), slots.end(), 0);
      if (to_tier) slots.push_back(books.slots() - 1);
      reserve_in(store, books, lane, slots);
    });
  } catch (...) {
    release_unused(store, books, whole.row);
    throw;
  }
}

/// After a row's books have come from elsewhere: the slots of all tokens in it.
///
/// @throws what the store throws if there is no room; what is reserved then stays
template <paging_store Store, eviction_policy P>
void reserve_row(Store& store, ledger<P> const& books, index_t row) {
  books.for_lanes(row, [&](index_t lane) {
    reserve_in(store, books, lane, slots_where(books, lane, [](position_t p) {
                 return p != no_position;
               }));
  });
}

// Any other store has memory for all its slots from the beginning, or finds it by itself.

template <kv_store Store, eviction_policy P>
void release_unused(Store&, ledger<P> const&, index_t) noexcept {}
template <kv_store Store, eviction_policy P>
void reserve_step(Store&, ledger<P>&, std::span<row_tokens const>, index_t) noexcept {}
template <kv_store Store, eviction_policy P>
void reserve_prompt(Store&, ledger<P> const&, row_tokens const&, bool) noexcept {}
template <kv_store Store, eviction_policy P>
void reserve_row(Store&, ledger<P> const&, index_t) noexcept {}

}  // namespace adore
