// SPDX-License-Identifier: Apache-2.0
// The attention of a step, kept apart until its end: a rejected token takes its observations along.
#pragma once

#include "adore/eviction/cache_line_allocator.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace adore {

/// One row of weights per lane and query of the step, in slot order; a row begins at a cache line,
/// since the pass over the lane reads it by whole vectors. Lanes that span heads or
/// layers add them up in the order of the calls.
class pending_weights {
 public:
  pending_weights() = default;
  pending_weights(index_t lanes, index_t max_new, index_t slots)
      : max_new_(max_new),
        slots_(slots),
        stride_(whole_cache_lines<float>(static_cast<std::size_t>(slots))),
        weights_(static_cast<std::size_t>(lanes) * static_cast<std::size_t>(max_new) * stride_),
        begun_(static_cast<std::size_t>(lanes) * static_cast<std::size_t>(max_new)),
        combined_(static_cast<std::size_t>(slots)) {}

  void begin() { std::fill(begun_.begin(), begun_.end(), std::uint8_t{0}); }

  /// [slot] weights of the lane's j-th query, zero at first.
  float* row(index_t lane, index_t j) {
    auto const which = static_cast<std::size_t>(lane * max_new_ + j);
    float* const first = weights_.data() + which * stride_;
    if (begun_[which] == 0) {
      begun_[which] = 1;
      std::fill_n(first, slots_, 0.0F);
    }
    return first;
  }

  /// Sum over the first `queries` rows of query_weight(later) x weight.
  ///
  /// @return [slot], valid until the next call
  template <class QueryWeight>
  float const* combine(index_t lane, index_t queries, QueryWeight&& query_weight) {
    if (queries == 1 && query_weight(0) == 1.0F) return row(lane, 0);
    std::fill(combined_.begin(), combined_.end(), 0.0F);
    for (index_t j = 0; j < queries; ++j) {
      float const factor = query_weight(queries - 1 - j);
      if (factor == 0.0F) continue;
      float const* const from = row(lane, j);
      for (index_t s = 0; s < slots_; ++s)
        combined_[static_cast<std::size_t>(s)] += factor * from[s];
    }
    return combined_.data();
  }

 private:
  index_t max_new_ = 1, slots_ = 0;
  std::size_t stride_ = 0;                                    // floats from row to row
  std::vector<float, cache_line_allocator<float>> weights_;   // [lane, query, slot]
  std::vector<std::uint8_t> begun_;                           // [lane, query]
  std::vector<float, cache_line_allocator<float>> combined_;  // [slot]
};

}  // namespace adore
