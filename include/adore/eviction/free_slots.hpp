// SPDX-License-Identifier: Apache-2.0
// The free slots of each lane.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// A stack per lane: what came free last is used first, at first the lowest slot.
class free_slots {
 public:
  free_slots(index_t lanes, index_t slots)
      : slots_(slots),
        counts_(static_cast<std::size_t>(lanes)),
        stacks_(static_cast<std::size_t>(lanes) * static_cast<std::size_t>(slots)) {}

  index_t count(index_t lane) const noexcept { return counts_[static_cast<std::size_t>(lane)]; }
  /// @pre the slot is not in the stack
  void push(index_t lane, index_t slot) noexcept {
    stack(lane)[counts_[static_cast<std::size_t>(lane)]++] = slot;
  }
  /// @pre count(lane) > 0
  index_t pop(index_t lane) noexcept {
    return stack(lane)[--counts_[static_cast<std::size_t>(lane)]];
  }
  /// Begins anew with the slots that hold `no_position`.
  void refill(index_t lane, std::span<position_t const> positions) noexcept {
    counts_[static_cast<std::size_t>(lane)] = 0;
    for (auto slot = static_cast<index_t>(positions.size()); slot-- > 0;) {
      if (positions[static_cast<std::size_t>(slot)] == no_position) push(lane, slot);
    }
  }
  void copy(index_t from, index_t to) noexcept {
    counts_[static_cast<std::size_t>(to)] = counts_[static_cast<std::size_t>(from)];
    std::copy_n(stack(from), count(from), stack(to));
  }

 private:
  index_t* stack(index_t lane) noexcept {
    return stacks_.data() + static_cast<std::ptrdiff_t>(lane) * slots_;
  }

  index_t slots_;
  std::vector<index_t> counts_;  // [lane]
  std::vector<index_t> stacks_;  // [lane, slot]
};

}  // namespace adore
