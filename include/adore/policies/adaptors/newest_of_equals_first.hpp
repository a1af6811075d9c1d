// SPDX-License-Identifier: Apache-2.0
// The other tie rule.
#pragma once

#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// Among equal priorities the newest token goes first, instead of the oldest.
///
/// Source: policies.md 0.4 (`tie = evict_newest`); papers leave ties open.
template <eviction_policy P>
struct newest_of_equals_first : forwards<newest_of_equals_first<P>, P> {
  P of{};
  static constexpr bool newest_first = true;
};

}  // namespace adore
