// SPDX-License-Identifier: Apache-2.0
// What a cache keeps from step to step: K and V in a store, the books of who is where, the order of
// the tokens, and those that may come back; for each row from `open` to `close`.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/cache_set_up.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/compact.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/kv_view.hpp"
#include "adore/stores/carry_out.hpp"
#include "adore/stores/page_upkeep.hpp"
#include "adore/stores/returning_tokens.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace adore {

/// A step writes to the parts one after the other; between steps they agree, and the functions here
/// leave them so, also when they throw.
template <kv_store Store, eviction_policy Policy>
struct cached_rows {
  static constexpr bool by_slot = slot_store<Store>;

  Store store;
  ledger<Policy> books;
  slot_order order;
  returning_tokens<Store, Policy> returning;
  compaction kind;

  cached_rows(Store given, Policy const& policy, cache_options const& options)
      : store(std::move(given)),
        books(policy,
              store.shape(),
              reach_of<Store, Policy>(options),
              options.max_new,
              by_slot ? placement::by_ledger : placement::by_store,
              by_slot ? options.rebuild.count : 0),
        order(store.shape().sequences * books.lanes_per_row()),
        returning(store, options.rebuild, store.shape().sequences),
        kind(options.compact) {}

  // ---------------------------------------------------------------- life of a sequence

  void open(index_t row, std::uint64_t seed) {
    books.open(row, seed);
    books.for_lanes(row, [&](index_t lane) { order.clear(lane); });
    returning.open(row);
  }
  void close(index_t row) {
    if constexpr (!by_slot || paging_store<Store>) {
      books.require_open(row, "close");
      books.for_lanes(row, [&](index_t lane) {
        release_from(store, books, lane, order.positions(lane), order.slots(lane));
      });
    }
    books.close(row);
    returning.close(row);
  }
  /// If the store throws, `to` is still free.
  void fork(index_t from, index_t to) {
    static_assert(by_slot || forking_store<Store>,
                  "adore: this store cannot fork: it needs 'void fork(index_t from, index_t to)'");
    books.fork(from, to);
    books.for_lanes(
        from, [&](index_t lane) { order.copy(lane, lane + (to - from) * books.lanes_per_row()); });
    if constexpr (forking_store<Store>) {
      try {
        store.fork(from, to);
      } catch (...) {
        books.close(to);
        throw;
      }
    } else {
      for (index_t layer = 0; layer < books.shape().layers; ++layer) {
        copy_row(kv_view_of(store.keys(layer)), from, to);
        copy_row(kv_view_of(store.values(layer)), from, to);
      }
    }
    returning.fork(from, to);
  }
  row_snapshot snapshot(index_t row) const {
    row_snapshot saved = books.snapshot(row);
    saved.past = returning.save(row);
    return saved;
  }
  /// @throws std::length_error, with the row free as before, if a paged store has too few pages
  void restore(index_t row, row_snapshot const& saved) {
    books.require_restorable(row, saved);
    returning.require_loadable(saved);
    books.restore(row, saved);
    try {
      returning.load(books, row, saved);
      reserve_row(store, books, row);
    } catch (...) {
      books.close(row);
      returning.close(row);
      release_unused(store, books, row);
      throw;
    }
    books.for_lanes(row, [&](index_t lane) { order.assign(lane, books.positions(lane)); });
  }

  /// For a step in which each open row gets one.
  std::vector<row_tokens> one_token_each() const {
    std::vector<row_tokens> rows;
    for (index_t row = 0; row < books.shape().sequences; ++row) {
      if (books.is_open(row)) rows.push_back({row});
    }
    return rows;
  }

  // ---------------------------------------------------------------- tokens that move or leave

  /// Nothing has been released in this step, and nothing has come back.
  void begin_step() {
    books.forget_released();
    returning.begin();
  }

  /// Moves a row's tokens together.
  void compact(index_t row) requires compacting_store<Store> {
    books.require_open(row, "compact");
    if (returning.active()) {
      throw std::logic_error(
          "adore: compact: released tokens may come back, and those that are back have their "
          "slots");
    }
    for (moved_lane const& lane : store.compact(row)) {
      move(books.lane(row, std::max(lane.layer, 0), std::max(lane.kv_head, 0)), lane.new_slot_of);
    }
  }
  /// The store has moved a lane's tokens: new_slot_of[old slot], -1 for a free one.
  void move(index_t lane, std::span<index_t const> new_slot_of) {
    books.move(lane, new_slot_of);
    order.assign(lane, books.positions(lane));
  }
  /// The newest tokens of a lane never were. A store that chooses slots itself gets its cells back;
  /// in another the books still have to free the slots.
  void reject(index_t lane, index_t count) {
    if constexpr (!by_slot) {
      auto const newest = static_cast<std::size_t>(count);
      if (count > 0) {
        release_from(
            store, books, lane, order.positions(lane).last(newest), order.slots(lane).last(newest));
      }
    }
    order.drop_newest(lane, count);
  }
  /// What the books have released leaves, into a tier if there is one.
  void carry_out_release() {
    returning.follow(store, books);
    carry_out(store, books, order, kind);
  }
  /// ... at the end of a step, after which slots may be free that were reserved for it.
  ///
  /// @param drafted  some of its tokens may have been rejected
  void end_step(std::span<row_step const> rows, bool drafted) {
    carry_out_release();
    if (!returning.active() && !drafted) return;
    for (row_step const& step : rows) release_unused(store, books, step.row);
  }

  // ---------------------------------------------------------------- decisions outside a step

  /// Of all lanes of a row; a smaller one releases at once.
  void set_budget(index_t row, index_t budget) {
    decide("set_budget", row, [&](index_t lane) { books.set_budget(lane, budget); });
  }
  /// ... of one of them.
  void set_budget(index_t row, index_t chosen, index_t budget) {
    decide("set_budget", row, [&](index_t lane) {
      if (lane == chosen) books.set_budget(lane, budget);
    });
  }
  /// Source: StreamingLLM's `evict_for_space`; sinks stay even if the room is too small.
  void make_room(index_t row, index_t tokens) {
    decide("reserve", row, [&](index_t lane) {
      index_t const budget = books.budget(lane);
      if (budget == unbounded) return;
      lane_view const view = books.view_of(lane, books.next_position(row) - 1);
      index_t const first = candidates_of(books.policy(), view).first;
      books.shrink(lane, std::max(std::min(first, budget), budget - tokens));
    });
  }

  // ---------------------------------------------------------------- what is there

  /// Positions of the released tokens that are back in the row at present, ascending.
  std::vector<position_t> back(index_t row) const {
    std::vector<position_t> result;
    for (position_t const p : books.positions(books.lane(row, 0, 0))) {
      if (is_guest(p)) result.push_back(guest_mark(p));
    }
    std::sort(result.begin(), result.end());
    return result;
  }

 private:
  /// Calls `action(lane)` for each lane of a row; what this releases leaves.
  ///
  /// @param what  the call that asks, for the sentence of an error
  template <class Action>
  void decide(char const* what, index_t row, Action&& action) {
    books.require_open(row, what);
    books.forget_released();
    books.for_lanes(row, action);
    carry_out_release();
  }
};

}  // namespace adore
