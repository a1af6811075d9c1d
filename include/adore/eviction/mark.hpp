// SPDX-License-Identifier: Apache-2.0
// The stage that chooses, for policies that release nothing, which tokens the next query attends.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/order_key.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace adore {

/// Marks the best of the tokens that may be marked and unmarks the newer ones.
///
/// Cost: O(slots log slots).
template <marks_tokens P>
void mark(P const& policy, lane_slots<P> const& lane, lane_view const& view) {
  index_t const count = policy.marks(view);
  if (count == unbounded) return;
  position_t const last = policy.last_markable(view);
  std::vector<std::pair<std::uint64_t, index_t>> keys;
  for (index_t s = 0; s < lane.slots; ++s) {
    position_t const p = lane.positions[s];
    if (p < 0) continue;
    if (p > last) {
      policy.unmark(lane.state(s));
    } else {
      float const priority =
          priority_of(policy, lane.view(s), view, lane.state(s), *lane.lane_state);
      keys.emplace_back(order_key(priority, p, releases_newest_of_equals<P>), s);
    }
  }
  std::sort(keys.rbegin(), keys.rend());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    policy.mark(lane.state(keys[i].second), i < static_cast<std::size_t>(count));
  }
}

}  // namespace adore
