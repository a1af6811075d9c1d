// SPDX-License-Identifier: Apache-2.0
// What a policy remembers of each slot and of each lane, which may be nothing.
#pragma once

#include "adore/types.hpp"

namespace adore {

namespace detail {
template <class P>
struct slot_state_type {
  using type = no_state;
};
template <class P>
  requires requires {
    typename P::slot_state;
  }
struct slot_state_type<P> {
  using type = typename P::slot_state;
};
template <class P>
struct lane_state_type {
  using type = no_state;
};
template <class P>
  requires requires {
    typename P::lane_state;
  }
struct lane_state_type<P> {
  using type = typename P::lane_state;
};
}  // namespace detail

/// `no_state` if the policy says nothing.
template <class P>
using slot_state_of = typename detail::slot_state_type<P>::type;
template <class P>
using lane_state_of = typename detail::lane_state_type<P>::type;

}  // namespace adore
