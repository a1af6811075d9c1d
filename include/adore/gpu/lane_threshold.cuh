// SPDX-License-Identifier: Apache-2.0
// What separates the largest keys of a lane from the others.
#pragma once

#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu::detail {

/// A number that exactly the `n` largest keys reach; 0 if there are no more than n keys.
///
/// @param keys_from  key -> how many keys are no smaller; all threads that share the keys call this
///                   together and get the same answer. No two keys are equal, none has all bits set
/// Cost: up to 64 counts, mostly as many as it takes to tell two neighbours apart.
template <class KeysFrom>
__device__ std::uint64_t reached_by_largest(index_t n, KeysFrom&& keys_from) {
  std::uint64_t threshold = 0;
  for (int bit = 63; bit >= 0; --bit) {
    std::uint64_t const higher = threshold | (std::uint64_t{1} << bit);
    index_t const count = keys_from(higher);
    if (count >= n) threshold = higher;
    if (count == n) break;
  }
  return threshold;
}

}  // namespace adore::gpu::detail
