// SPDX-License-Identifier: Apache-2.0
// Which store, policy and options make a cache: what the options leave open, and the sentences that
// refuse what does not go together.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/lane_budget.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/invalid_field.hpp"
#include "adore/rebuild/rebuildable.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace adore {

/// The options' position scheme, else the policy's, else original.
template <eviction_policy P>
position_scheme scheme_of(cache_options const& options) {
  if constexpr (requires { P::default_positions; }) {
    return options.positions.value_or(P::default_positions);
  } else {
    return options.positions.value_or(position_scheme::original);
  }
}

/// The options' scope, else the policy's, as far as the store can release so finely.
///
/// @throws std::invalid_argument naming both scopes, unless the coarser one is allowed
template <kv_store Store, eviction_policy P>
scope reach_of(cache_options const& options) {
  scope const wanted = options.reach.value_or(P::default_scope);
  if (wanted <= Store::finest_scope) return wanted;
  if (options.coarsest_available) return Store::finest_scope;
  throw std::invalid_argument(std::string("adore: scope ") + word_of(wanted) +
                              " is asked for, but this store releases at scope " +
                              word_of(Store::finest_scope) +
                              " at the finest; ask for that, or set coarsest_available");
}

/// @return the options
/// @throws std::invalid_argument naming field and value, of the policy too
template <eviction_policy P>
cache_options checked_options(P const& policy, cache_options options) {
  policy.validate();
  require_field(
      options.max_new >= 1, "cache_options.max_new", options.max_new, "must be at least 1");
  return options;
}

/// @throws std::invalid_argument if a lane cannot hold what its budget says beside a step's tokens
template <kv_store Store, eviction_policy P>
void require_room_for_budget(Store const& store,
                             ledger<P> const& books,
                             cache_options const& options,
                             index_t lane) {
  index_t const layer = books.layer_of(lane), head = books.head_of(lane);
  index_t budget = first_budget(books.policy(), books.shape(), layer, head);
  if constexpr (budgets_prompt_lanes<P>) {
    budget =
        std::min(budget, books.policy().lane_prompt_budget(books.shape(), layer, head, unbounded));
  } else if constexpr (budgets_prompt<P>) {
    budget = std::min(budget, books.policy().prompt_budget());
  }
  index_t const arrivals = options.max_new + options.rebuild.count;
  index_t const room = slot_store<Store> ? books.slots() - arrivals : store.capacity();
  if (budget == unbounded || budget <= room) return;
  throw std::invalid_argument("adore: budget = " + std::to_string(budget) +
                              ": the store has room for " + std::to_string(room) +
                              " tokens per lane beside the " + std::to_string(arrivals) +
                              " that a step may bring");
}

/// @throws std::invalid_argument if store, policy and options contradict one another
template <kv_store Store, eviction_policy P>
void require_agreement(Store const& store, ledger<P> const& books, cache_options const& options) {
  scope const reach = books.reach();
  if (options.rebuild.count > 0) {
    require_rebuildable<P>(options, slot_store<Store>, reach, scheme_of<P>(options));
  }
  auto const require = [](bool holds, char const* sentence) {
    if (!holds) throw std::invalid_argument(sentence);
  };
  if constexpr (budgets_lanes<P>) {
    require(reach != scope::model || books.shape().layers <= 1,
            "adore: budgets per layer need lanes of scope layer or kv_head; scope model has one "
            "for all layers");
  }
  if constexpr (limits_attention<P>) {
    require(books.policy().attention_limit().scope != top_k_scope::layer || reach != scope::kv_head,
            "adore: heads that agree on one set need lanes of scope layer or model");
  }
  require(!paging_store<Store> || options.compact == compaction::slot_reuse,
          "adore: compact: in pages new tokens fill the holes; leave cache_options.compact at "
          "slot_reuse, and call compact(row) when a row has become smaller");
  for (index_t lane = 0; lane < books.lanes_per_row(); ++lane) {
    require_room_for_budget(store, books, options, lane);
  }
}

}  // namespace adore
