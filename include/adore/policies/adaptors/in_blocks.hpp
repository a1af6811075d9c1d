// SPDX-License-Identifier: Apache-2.0
// Releases whole blocks of tokens, for engines whose pages come free only when they are empty.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// Blocks of `size` consecutive positions, beginning at multiples of it, leave together. A block is
/// as good as its best token, and a candidate once it is complete and nothing in it is protected.
///
/// After a release a lane holds up to size - 1 tokens less than its budget.
template <eviction_policy P>
struct in_blocks : forwards<in_blocks<P>, P> {
  P of{};
  index_t size = 16;

  ADORE_HOST_DEVICE constexpr index_t granule() const noexcept { return size; }
  constexpr void validate() const {
    of.validate();
    require_field(size >= 1, "in_blocks.size", size, "must be at least 1");
  }
};

}  // namespace adore
