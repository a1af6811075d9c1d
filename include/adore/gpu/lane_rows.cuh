// SPDX-License-Identifier: Apache-2.0
// The query rows of a lane in a step: which query and head each is, what it may see, and how many
// passes over K and V they take.
#pragma once

#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/rebuild/schedule.hpp"

namespace adore::gpu::detail {

/// Which lane, and what the ledger says of it.
struct lane_of_step {
  index_t row, head, lane;
  index_t token;    // the row's first in the step's tensors
  index_t rebuilt;  // queries beside those of the new tokens
  step_books books;
  lane_share share;

  __device__ index_t count() const { return books.row.count; }
  __device__ index_t queries() const { return count() + rebuilt; }
  __device__ position_t next() const { return books.row.next; }
};

/// Query rows are numbered (query, member of the group); first the new tokens', then the rebuilt
/// ones'. A pass takes `plan.rows` of them.
template <class T, class View, class Guests, class Plan>
class lane_rows {
 public:
  __device__ __forceinline__ lane_rows(attend_args<T, View, Guests> const& args, Plan const& plan)
      : args_(args), plan_(plan) {}

  __device__ __forceinline__ index_t passes(lane_of_step const& of) const {
    if constexpr (Plan::one_query) return 1;
    return plan_.by_rows.quotient(of.queries() * plan_.group + plan_.rows - 1);
  }
  __device__ __forceinline__ index_t rows(lane_of_step const& of, index_t pass) const {
    if constexpr (Plan::one_query) return plan_.rows;
    return min(plan_.rows, of.queries() * plan_.group - pass * plan_.rows);
  }
  /// Of a lane's query row: the query, and the head that it is of.
  __device__ __forceinline__ index_t query_of(index_t r) const {
    return Plan::one_query ? 0 : plan_.by_group.quotient(r);
  }
  __device__ __forceinline__ index_t head_of(lane_of_step const& of, index_t r) const {
    return of.head * plan_.group + r - query_of(r) * plan_.group;
  }
  /// Number of query j in the step's tensors.
  __device__ __forceinline__ index_t token_of(lane_of_step const& of, index_t j) const {
    if constexpr (Guests::has_guests) {
      if (j >= of.count()) {
        return args_.rebuilt.tokens[of.row * args_.rebuilt.most + j - of.count()];
      }
    }
    return of.token + j;
  }
  /// The last position that query j may see.
  __device__ __forceinline__ position_t last_seen_by(lane_of_step const& of, index_t j) const {
    if constexpr (Guests::has_guests) {
      if (j >= of.count() && j < of.queries()) {
        if (args_.rebuilt.mask == rebuild_mask::row_causal) return of.next() - 1;
        if (args_.rebuilt.mask == rebuild_mask::none) return of.next() + of.count() - 1;
        return args_.rebuilt.positions[of.row * args_.rebuilt.most + j - of.count()];
      }
    }
    return of.next() + j;
  }
  /// Under row_causal: whether position p is of a row that is computed behind query j's.
  __device__ bool is_row_behind(lane_of_step const& of, index_t j, position_t p) const
      requires(Guests::has_guests) {
    if (j < of.count() || j >= of.queries()) return false;
    position_t const* const all = args_.rebuilt.positions + of.row * args_.rebuilt.most;
    if (p <= all[j - of.count()]) return false;
    for (index_t i = 0; i < of.rebuilt; ++i) {
      if (all[i] == p) return true;
    }
    return false;
  }

 private:
  attend_args<T, View, Guests> const& args_;
  Plan const& plan_;
};

}  // namespace adore::gpu::detail
