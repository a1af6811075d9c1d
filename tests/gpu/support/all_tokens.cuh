// SPDX-License-Identifier: Apache-2.0
// K and V of every token that there ever was, by position, and the attention of a query to some of
// them in double precision: no slots, no pages, nothing forgotten.
#pragma once

#include "attention_case.cuh"
#include "device_tensor.cuh"
#include <adore/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace adore::testing {

template <class T>
class all_tokens {
 public:
  explicit all_tokens(kv_shape const& shape)
      : shape_(shape),
        keys_(static_cast<std::size_t>(shape.layers * shape.sequences * shape.kv_heads)),
        values_(keys_.size()) {}

  /// @param k, v  [kv_head, channel] of the row's next token
  void append(index_t layer, index_t row, T const* k, T const* v) {
    for (index_t head = 0; head < shape_.kv_heads; ++head) {
      auto& keys = keys_[at(layer, row, head)];
      auto& values = values_[at(layer, row, head)];
      index_t const first = head * shape_.channels;
      keys.insert(keys.end(), k + first, k + first + shape_.channels);
      values.insert(values.end(), v + first, v + first + shape_.channels);
    }
  }

  /// @param positions  of the tokens that the query sees; the weights have their order
  exact_attention attend(index_t layer,
                         index_t row,
                         index_t kv_head,
                         std::vector<position_t> const& positions,
                         T const* q) const {
    auto const channels = static_cast<std::size_t>(shape_.channels);
    T const* const keys = keys_[at(layer, row, kv_head)].data();
    T const* const values = values_[at(layer, row, kv_head)].data();
    exact_attention exact;
    for (position_t const p : positions) {
      T const* const key = keys + static_cast<std::size_t>(p) * channels;
      double dot = 0.0;
      for (std::size_t i = 0; i < channels; ++i) dot += number(q[i]) * number(key[i]);
      exact.weights.push_back(dot / std::sqrt(static_cast<double>(channels)));
    }
    double const highest = *std::max_element(exact.weights.begin(), exact.weights.end());
    double sum = 0.0;
    for (double const logit : exact.weights) sum += std::exp(logit - highest);
    exact.lse = highest + std::log(sum);
    exact.out.assign(channels, 0.0);
    for (std::size_t n = 0; n < positions.size(); ++n) {
      exact.weights[n] = std::exp(exact.weights[n] - exact.lse);
      T const* const value = values + static_cast<std::size_t>(positions[n]) * channels;
      for (std::size_t i = 0; i < channels; ++i)
        exact.out[i] += exact.weights[n] * number(value[i]);
    }
    return exact;
  }

 private:
  std::size_t at(index_t layer, index_t row, index_t head) const {
    return static_cast<std::size_t>((layer * shape_.sequences + row) * shape_.kv_heads + head);
  }

  kv_shape shape_;
  std::vector<std::vector<T>> keys_, values_;  // [layer, row, kv_head][position, channel]
};

}  // namespace adore::testing
