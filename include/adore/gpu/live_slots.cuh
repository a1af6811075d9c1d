// SPDX-License-Identifier: Apache-2.0
// Which slots of a row hold tokens, and which tokens: by the books of a ledger, or by a length.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"
#include "adore/types.hpp"

#include <concepts>
#include <type_traits>

namespace adore::gpu {

/// The queries of a row in a step: query j, j < count, is the token at position next + j.
struct query_run {
  position_t next;
  index_t count;
};

/// Says inside a kernel which token is in a slot. Queries are padded: token row * max_new + j.
template <class S>
concept live_slots = std::is_trivially_copyable_v<S> &&
    requires(S const& slots, index_t row, index_t kv_head, index_t slot) {
  { slots.max_new() } -> std::same_as<index_t>;
  { slots.rows() } -> std::same_as<index_t>;
  { slots.queries(row) } -> std::same_as<query_run>;
  { slots.capacity() } -> std::same_as<index_t>;  // slots that may be asked for
  { slots.position(row, kv_head, slot) } -> std::same_as<position_t>;  // no_position: a hole
};

/// As the ledger has it, for one layer. Reserved slots have positions that no query sees.
template <eviction_policy P>
struct ledger_slots {
  ledger_view<P> ledger;
  index_t layer = 0;

  ADORE_HOST_DEVICE index_t max_new() const { return ledger.max_new; }
  ADORE_HOST_DEVICE index_t rows() const { return ledger.row_count; }
  ADORE_HOST_DEVICE index_t capacity() const { return ledger.slots; }
  ADORE_HOST_DEVICE query_run queries(index_t row) const {
    return {ledger.rows[row].next, ledger.rows[row].count};
  }
  ADORE_HOST_DEVICE position_t position(index_t row, index_t kv_head, index_t slot) const {
    return ledger.positions[ledger.cell(ledger.lane(row, layer, kv_head)) + slot];
  }
};

/// For an engine without a ledger: slot s of a row holds the token at position s, s < length; the
/// last tokens of each row are the queries.
struct filled_slots {
  index_t const* lengths = nullptr;  // [row] tokens, those of this step included
  index_t const* counts = nullptr;   // [row] queries, 0..max_new; nullptr: max_new in every row
  index_t row_count = 0;
  index_t most_queries = 1;

  ADORE_HOST_DEVICE index_t max_new() const { return most_queries; }
  ADORE_HOST_DEVICE index_t rows() const { return row_count; }
  ADORE_HOST_DEVICE index_t capacity() const { return unbounded; }
  ADORE_HOST_DEVICE query_run queries(index_t row) const {
    index_t const count = counts == nullptr ? most_queries : counts[row];
    return {lengths[row] - count, count};
  }
  ADORE_HOST_DEVICE position_t position(index_t row, index_t, index_t slot) const {
    return slot < lengths[row] ? slot : no_position;
  }
};

static_assert(live_slots<filled_slots>);

}  // namespace adore::gpu
