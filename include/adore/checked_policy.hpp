// SPDX-License-Identifier: Apache-2.0
// What the compiler says of a policy that lacks something.
#pragma once

#include "adore/concepts.hpp"
#include "adore/types.hpp"

#include <type_traits>

namespace adore {

/// Turns every unmet requirement into one sentence with the missing signature.
template <class P>
struct checked_policy {
  static_assert(std::is_trivially_copyable_v<P>,
                "adore: a policy is copied into kernels, so it must be trivially copyable: numbers "
                "only, no pointers it owns, no virtual functions");
  static_assert(has_budget<P>,
                "adore: a policy needs 'index_t budget() const', the tokens that each lane keeps");
  static_assert(has_default_scope<P>,
                "adore: a policy needs 'static constexpr scope default_scope', the lanes it is "
                "meant for");
  static_assert(validates<P>,
                "adore: a policy needs 'void validate() const', which throws std::invalid_argument "
                "naming field and value");
  static_assert(std::is_trivially_copyable_v<slot_state_of<P>>,
                "adore: 'slot_state' of a policy must be trivially copyable, an engine stores one "
                "per slot");
  static_assert(std::is_trivially_copyable_v<lane_state_of<P>>,
                "adore: 'lane_state' of a policy must be trivially copyable, an engine stores one "
                "per lane");
  static_assert(ranks_by_slot<P> || ranks_by_slot_state<P> || ranks_by_lane_state<P>,
                "adore: a policy needs 'float keep_priority(slot_view, lane_view[, slot_state "
                "const&[, lane_state const&]]) const'; larger is kept longer");
  static_assert(
      !requires { &P::observe; } || observes_attention<P>,
      "adore: 'observe' of a policy must be callable as 'observe(slot_state&, slot_view, "
      "lane_view, float weight, index_t queries) const'");
  static_assert(
      !requires { &P::protected_first; } || protects_first<P>,
      "adore: 'protected_first' of a policy must be 'index_t protected_first(lane_view) "
      "const'");
  static_assert(
      !requires { &P::protected_newest; } || protects_newest<P>,
      "adore: 'protected_newest' of a policy must be 'index_t "
      "protected_newest(lane_view) const'");
  static_assert(
      !requires { &P::query_weight; } || weighs_queries<P>,
      "adore: 'query_weight' of a policy must be 'float query_weight(index_t later) "
      "const'");
  using type = P;
};

}  // namespace adore
