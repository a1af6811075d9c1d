// SPDX-License-Identifier: Apache-2.0
// Which caches can bring released tokens back, and the sentences that refuse the others.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"
#include "adore/types.hpp"

#include <stdexcept>
#include <string>
#include <variant>

namespace adore {

/// Whether released tokens can come back under a policy at all.
template <eviction_policy P>
inline constexpr bool lets_tokens_return =
    !masks_attention<P> && !numbers_tokens<P> && !marks_tokens<P> && !scores_keys<P> &&
    !releases_blocks<P>;
inline constexpr char const* why_no_token_returns =
    "tokens cannot come back under a policy that hides or numbers tokens, looks at keys or "
    "releases "
    "blocks";

/// @param by_slot  the store's K and V are addressed by slot; else the engine finds room for what
///                 comes back and lets it go at the end of the step
/// @throws std::invalid_argument if tokens cannot come back into such a cache
template <eviction_policy P>
void require_rebuildable(cache_options const& options,
                         bool by_slot,
                         scope reach,
                         position_scheme scheme) {
  auto const require = [](bool holds, char const* why) {
    if (!holds) throw std::invalid_argument(std::string("adore: rebuild: ") + why);
  };
  rebuild_options const& wanted = options.rebuild;
  bool const by_rank = scheme == position_scheme::cache_index;
  if (!by_slot) {
    require(std::holds_alternative<every_step>(wanted.schedule),
            "in a store that chooses slots itself tokens come back for one step; the schedule must "
            "be every_step");
    require(wanted.admit == rebuild_admission::never,
            "in a store that chooses slots itself tokens that came back cannot stay; admit must be "
            "never");
    require(!observes_attention<P> || wanted.score == rebuilt_score::frozen,
            "in a store that chooses slots itself nobody says what tokens that came back receive; "
            "score must be frozen");
  }
  require(reach == scope::model,
          "a token passes through all layers, so that lanes must be of scope model");
  require(lets_tokens_return<P>, why_no_token_returns);
  require(!by_rank || wanted.mask == rebuild_mask::position_causal,
          "with cache_index positions the mask must be position_causal");
  require(!by_rank || !keeps_sinks_and_window<P>,
          "sinks that shift with the window leave no place for others; use original positions");
  require(options.compact == compaction::slot_reuse,
          "tokens that come back have their slots; compact must be slot_reuse");
  if (auto const* const periodic = std::get_if<every>(&wanted.schedule)) {
    require_field(periodic->steps >= 1, "every.steps", periodic->steps, "must be at least 1");
  }
  if (auto const* const entry = std::get_if<on_entry>(&wanted.schedule)) {
    require_field(entry->pool >= 0, "on_entry.pool", entry->pool, "must not be negative");
  }
}

}  // namespace adore
