// SPDX-License-Identifier: Apache-2.0
// Reduces the probabilities of the query heads that share a KV head to that head's weight.
#pragma once

#include "adore/types.hpp"

#include <algorithm>

namespace adore {

/// Adds one query head's probabilities to the weight of its KV head.
///
/// @param weights        [count], in/out
/// @param probabilities  [count]
/// @param member         0 for the first query head of the group: it overwrites `weights`
/// @param group          query heads per KV head
inline void reduce_head(gqa_reduction reduction,
                        float* __restrict weights,
                        float const* __restrict probabilities,
                        index_t count,
                        index_t member,
                        index_t group) {
  if (member == 0) {
    std::copy_n(probabilities, count, weights);
  } else if (reduction == gqa_reduction::max) {
    for (index_t i = 0; i < count; ++i) {
      weights[i] = weights[i] > probabilities[i] ? weights[i] : probabilities[i];
    }
  } else {
    for (index_t i = 0; i < count; ++i) weights[i] += probabilities[i];
  }
  if (reduction == gqa_reduction::mean && member == group - 1) {
    for (index_t i = 0; i < count; ++i) weights[i] /= static_cast<float>(group);
  }
}

}  // namespace adore
