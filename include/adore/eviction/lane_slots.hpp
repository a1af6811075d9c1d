// SPDX-License-Identifier: Apache-2.0
// The slots of one lane as the stages see them: raw pointers and a count, on either side.
#pragma once

#include "adore/concepts.hpp"
#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <type_traits>

namespace adore {

/// Who sits where in one lane. Slot s is free where positions[s] is `no_position`; a number below
/// that is a guest's, see `guest_mark`.
template <eviction_policy P>
struct lane_slots {
  index_t slots = 0;
  position_t* positions = nullptr;     // [slot]
  position_t* rotary = nullptr;        // [slot]
  slot_state_of<P>* states = nullptr;  // [slot]; one shared entry if the state is empty
  lane_state_of<P>* lane_state = nullptr;

  ADORE_HOST_DEVICE constexpr slot_state_of<P>& state(index_t slot) const noexcept {
    if constexpr (std::is_empty_v<slot_state_of<P>>) {
      return *states;
    } else {
      return states[slot];
    }
  }
  ADORE_HOST_DEVICE constexpr slot_view view(index_t slot) const noexcept {
    return {positions[slot], rotary[slot]};
  }
};

}  // namespace adore
