// SPDX-License-Identifier: Apache-2.0
// A dense prompt of a row of a cache, from the question whether it fits to the one selection after
// which its tokens are in their lanes like any others.
#pragma once

#include "adore/attention/attention_scale.hpp"
#include "adore/attention/key_storage.hpp"
#include "adore/attention/prompt_lane.hpp"
#include "adore/attention/prompt_stage.hpp"
#include "adore/cache_options.hpp"
#include "adore/cache_set_up.hpp"
#include "adore/cached_rows.hpp"
#include "adore/concepts.hpp"
#include "adore/kv_view.hpp"
#include "adore/step_tokens.hpp"
#include "adore/stores/page_upkeep.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

namespace adore {

/// One row at a time. In scope model its lanes select at the end, else each layer's when it has
/// been attended.
template <kv_store Store, eviction_policy P>
class dense_prompt {
 public:
  using rows = cached_rows<Store, P>;

  /// @throws std::length_error, with nothing changed, if the staging area, the slots or the pages
  ///         are too few
  void reserve(rows& all, row_tokens const& whole, cache_options const& options) {
    prompt_stage<P>::require_staging(
        whole.count, all.books.shape(), all.books.reach(), options.staging_limit_bytes);
    require_prompt_fits(all.books, whole);
    reserve_prompt(all.store, all.books, whole, all.returning.restores());
  }
  /// @param step  is told the rotary positions
  void begin(rows& all, row_tokens const& whole, step_tokens<P>& step) {
    row_ = whole.row;
    all.returning.hear(all.books, whole, whole.count - 1);
    stage_.begin(all.books, row_, whole);
    for (index_t j = 0; j < whole.count; ++j) {
      step.number(numbers_tokens<P> ? stage_.rotary(j) : j);
    }
  }

  void append(index_t layer, token_view<float const> k, token_view<float const> v) {
    stage_.append(layer, k, v);
  }
  /// If it throws, the row is closed; so it is with `end`.
  void attend(rows& all,
              index_t layer,
              token_view<float const> q,
              token_view<float> out,
              key_storage<P>& storage,
              cache_options const& options) {
    or_close(all, [&] {
      float const scale = attention_scale_of(options.attention_scale, q.channels);
      stage_.attend(layer, q, out, storage, options.reduction, scale);
      if (all.books.reach() != scope::model) select(all, storage, layer);
    });
  }
  void end(rows& all, key_storage<P>& storage) {
    or_close(all, [&] {
      if (all.books.reach() == scope::model) select(all, storage, 0);
    });
    all.books.advance(row_, stage_.tokens());
    all.books.for_lanes(row_, [&](index_t lane) { all.books.finish_prompt(lane); });
    all.returning.follow_prompt(
        all.store, all.books, row_, stage_.states(), [&](position_t token, index_t slot) {
          stage_.put(token, slot, storage, all.store);
        });
    release_unused(all.store, all.books, row_);
  }

 private:
  void select(rows& all, key_storage<P>& storage, index_t layer) {
    stage_.select(all.books, storage, all.store);
    for (index_t head = 0; head < all.books.lane_heads(); ++head) {
      list(all, all.books.lane(row_, layer, head));
    }
  }
  static void list(rows& all, index_t lane) { all.order.assign(lane, all.books.positions(lane)); }
  template <class Action>
  void or_close(rows& all, Action&& action) {
    try {
      action();
    } catch (...) {  // some lanes may have their tokens, others not
      all.books.for_lanes(row_, [&](index_t lane) { list(all, lane); });
      release_unused(all.store, all.books, row_);
      all.close(row_);
      throw;
    }
  }

  index_t row_ = 0;
  prompt_stage<P> stage_;
};

}  // namespace adore
