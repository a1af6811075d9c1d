// SPDX-License-Identifier: Apache-2.0
// Where released K and V go if they may come back: host memory with a limit.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <span>
#include <vector>

namespace adore {

/// K and V of released tokens, all layers and heads of a token together. When the limit is reached
/// it loses the oldest release first, and says which tokens these were.
template <class T>
class host_tier {
 public:
  struct token {
    index_t row;
    position_t position;
    friend bool operator<(token const& a, token const& b) noexcept {
      return a.row != b.row ? a.row < b.row : a.position < b.position;
    }
  };

  host_tier() = default;
  /// @param elements     of one token: 2 x layers x kv_heads x channels
  /// @param limit_bytes  of all tokens together
  host_tier(std::size_t elements, std::size_t limit_bytes)
      : elements_(elements), limit_(limit_bytes / (elements * sizeof(T))) {}

  std::size_t bytes() const noexcept { return held_.size() * elements_ * sizeof(T); }

  /// Room for a token that is not there yet, to be filled by the caller.
  ///
  /// @param lost  called with every token that has to go for it; with this one too if the limit is
  ///              too small for any, and then nothing is returned
  template <class Lost>
  std::span<T> put(token which, Lost&& lost) {
    if (limit_ == 0) {
      lost(which);
      return {};
    }
    while (held_.size() >= limit_) {
      token const oldest = order_.front();
      order_.pop_front();
      if (held_.erase(oldest) > 0) lost(oldest);
    }
    order_.push_back(which);
    return held_.insert_or_assign(which, std::vector<T>(elements_)).first->second;
  }
  bool holds(token which) const { return held_.contains(which); }
  /// @pre holds(which)
  std::span<T const> get(token which) const { return held_.at(which); }

  void forget(index_t row) {
    std::erase_if(held_, [row](auto const& entry) { return entry.first.row == row; });
    std::erase_if(order_, [row](token const& entry) { return entry.row == row; });
  }
  /// Calls `use(position, K and V)` for each token of a row, in the order of their release.
  template <class Use>
  void for_each(index_t row, Use&& use) const {
    for (token const& entry : order_) {
      if (entry.row == row && holds(entry)) use(entry.position, get(entry));
    }
  }
  /// `to` gets what `from` has, as far as the limit goes.
  template <class Lost>
  void fork(index_t from, index_t to, Lost&& lost) {
    std::vector<token> of_row;
    for (token const& entry : order_) {
      if (entry.row == from && holds(entry)) of_row.push_back(entry);
    }
    for (token const& entry : of_row) {
      if (!holds(entry)) continue;  // lost on the way
      std::vector<T> const copy = held_.at(entry);
      std::span<T> const room = put({to, entry.position}, lost);
      std::copy(copy.begin(), copy.end(), room.begin());
    }
  }

 private:
  std::size_t elements_ = 0, limit_ = 0;
  std::map<token, std::vector<T>> held_;
  std::deque<token> order_;  // of release
};

}  // namespace adore
