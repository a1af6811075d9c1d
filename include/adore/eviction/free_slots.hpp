// SPDX-License-Identifier: Apache-2.0
// The free slots of each lane.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace adore {

/// A stack per lane: what came free last is used first, at first the lowest slot.
class free_slots {
 public:
  free_slots(index_t lanes, index_t slots)
      : stride_(slots + 1),
        stacks_(static_cast<std::size_t>(lanes) * static_cast<std::size_t>(stride_)) {}

  index_t count(index_t lane) const noexcept { return *stack(lane); }
  /// The slots that the next calls of `pop` return, `most` or as many as there are, in no order.
  std::span<index_t const> next(index_t lane, index_t most) const noexcept {
    index_t const n = std::min(most, count(lane));
    return {stack(lane) + 1 + count(lane) - n, static_cast<std::size_t>(n)};
  }
  /// Slots for which `preferred(slot)` holds are used first, and of these and of the others the
  /// lowest, so that slots that are used one after the other lie together.
  template <class Preferred>
  void prefer(index_t lane, Preferred&& preferred) {
    index_t* const first = stack(lane) + 1;
    index_t* const end = first + count(lane);
    index_t* const chosen =
        std::partition(first, end, [&](index_t slot) { return !preferred(slot); });
    std::sort(first, chosen, std::greater<>{});
    std::sort(chosen, end, std::greater<>{});
  }
  /// @pre the slot is not in the stack
  void push(index_t lane, index_t slot) noexcept {
    index_t* const all = stack(lane);
    all[++*all] = slot;
  }
  /// @pre count(lane) > 0
  index_t pop(index_t lane) noexcept {
    index_t* const all = stack(lane);
    return all[(*all)--];
  }
  /// Begins anew with the slots that hold `no_position`.
  void refill(index_t lane, std::span<position_t const> positions) noexcept {
    *stack(lane) = 0;
    for (auto slot = static_cast<index_t>(positions.size()); slot-- > 0;) {
      if (positions[static_cast<std::size_t>(slot)] == no_position) push(lane, slot);
    }
  }
  void copy(index_t from, index_t to) noexcept {
    std::copy_n(stack(from), count(from) + 1, stack(to));
  }

 private:
  index_t* stack(index_t lane) noexcept {
    return stacks_.data() + static_cast<std::ptrdiff_t>(lane) * stride_;
  }
  index_t const* stack(index_t lane) const noexcept {
    return stacks_.data() + static_cast<std::ptrdiff_t>(lane) * stride_;
  }

  index_t stride_;
  std::vector<index_t>
      stacks_;  // [lane, 1 + slot]: the count, then the slots, the last one first out
};

}  // namespace adore
