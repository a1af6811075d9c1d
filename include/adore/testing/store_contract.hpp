// SPDX-License-Identifier: Apache-2.0
// The conformance test of a store, for engine authors: call it with your own store from any test
// framework. It throws a sentence that names the clause which the store breaks.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/testing/paging_store_contract.hpp"
#include "adore/testing/placing_store_contract.hpp"
#include "adore/testing/scarce_pages_contract.hpp"
#include "adore/testing/slot_store_contract.hpp"
#include "adore/types.hpp"

#include <type_traits>

namespace adore::testing {

/// Checks a store that is addressed by slot.
///
///     TEST_CASE("my tensors are a store") {
///       adore::testing::check_store([](adore::kv_shape const& shape) {
///         return adore::view_store(my_keys(shape), my_values(shape));
///       });
///     }
///
/// The clauses: numbers and views agree; each number is memory of its own; `release` counts what
/// came free and touches no token that stays; attention and kept sets are, bit by bit, those of a
/// `host_store` with window, StreamingLLM and H2O, two sequences, a fork and rejected tokens.
///
/// Of a store in pages (`paging_store`) besides: a page is taken with the first slot of a block and
/// free with its last token; emptied pages can be used again in the same step; a shared prefix is
/// there once, is copied before it is written, and stays for each sequence that holds it; a
/// rejected draft gives its pages back; a row owns a slot from its reservation to its release;
/// a fork onto a row that holds pages is refused; `compact` reports where K and V went. It needs
/// pages for all rows at once, and two pages a row; with fewer see `check_scarce_pages`.
///
/// @param make_store  `Store (kv_shape const&)`: a new store of that shape; it may have more slots
/// @throws contract_violation naming the first broken clause
/// @throws std::invalid_argument if the set-up is too small to tell anything
template <class MakeStore>
  requires slot_store<std::invoke_result_t<MakeStore&, kv_shape const&>>
void check_store(MakeStore make_store, contract_setup const& setup = {}) {
  require_field(setup.shape.slots >= 8, "setup.shape.slots", setup.shape.slots, "must be >= 8");
  require_field(setup.shape.channels >= 2, "setup.channels", setup.shape.channels, "must be >= 2");
  auto store = make_store(setup.shape);
  detail::check_numbers(store, setup.shape);
  detail::check_views(store);
  if constexpr (paging_store<decltype(store)>) {
    require_field(store.capacity() > store.granule(),
                  "setup.shape.slots",
                  setup.shape.slots,
                  "must be more than a page");
  }
  detail::reserve_all(store);
  detail::check_memory(store);
  if constexpr (paging_store<decltype(store)>) detail::check_pages(make_store, setup.shape);
  index_t const budget = setup.shape.slots - 2;
  detail::compare_by_slot(make_store(setup.shape), setup, sliding_window::of_budget(budget));
  detail::compare_by_slot(make_store(setup.shape), setup, streaming_llm::clamped(2, budget));
  detail::compare_by_slot(make_store(setup.shape), setup, h2o::of_budget(budget));
}

/// Checks a store that chooses the slots itself.
///
///     adore::testing::check_store(
///         [](adore::kv_shape const& shape) { return my_store(shape); },
///         [](my_store& store, auto& cache, adore::index_t row, adore::index_t count) {
///           for (adore::index_t j = 0; j < count; ++j) {
///             auto const position = cache.books().next_position(row) + j;
///             int const cell = store.put(row, position);     // what the engine's step does
///             cache.placed(row, 0, 0, j, cell);              // scope model: one lane per row
///           }
///         });
///
/// The clauses: `capacity()` tokens of a lane can be there at once; slots are reported once per
/// token and lane, in range and never where a token still is; `release` frees what it counts, so
/// that a later step finds room, and nothing for positions that were never there; rejected tokens
/// leave; a fork outlives its origin; kept sets are those of a `host_store`. A store with
/// `position_t position_at(row, layer, kv_head, slot)`
/// (`no_position`: free) is asked after each step whether it holds what it was told.
///
/// @param step  does the engine's step for `count` new tokens of a row: it calls
///              `cache.placed(row, layer, kv_head, j, slot)` for each of them in each lane, and
///              throws if there is no room. `cache` offers `placed`, `books`, `reach`, `positions`.
template <class MakeStore, class Step>
  requires(kv_store<std::invoke_result_t<MakeStore&, kv_shape const&>> &&
           !slot_store<std::invoke_result_t<MakeStore&, kv_shape const&>>)
void check_store(MakeStore make_store, Step step, contract_setup const& setup = {}) {
  auto const store = make_store(setup.shape);
  detail::check_numbers(store, setup.shape);
  // rows may share the store's room
  index_t const budget = store.capacity() / setup.shape.sequences - 2;
  require_field(budget >= 4, "setup.shape.slots", setup.shape.slots, "are too few for the test");
  detail::compare_by_store(make_store(setup.shape), step, setup, sliding_window::of_budget(budget));
  detail::compare_by_store(make_store(setup.shape), step, setup, streaming_llm::clamped(2, budget));
  detail::compare_by_store(make_store(setup.shape), step, setup, h2o::of_budget(budget));
  detail::check_capacity(make_store(setup.shape), step);
  if constexpr (forking_store<std::invoke_result_t<MakeStore&, kv_shape const&>>) {
    if (setup.shape.sequences > 1) detail::check_fork(make_store(setup.shape), step);
  }
}

}  // namespace adore::testing
