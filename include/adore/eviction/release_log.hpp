// SPDX-License-Identifier: Apache-2.0
// What has left the lanes lately.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// A token that left a lane in the step that just ended.
struct released_token {
  index_t lane;
  index_t slot;
  position_t position;
};

/// A list that only grows until it is cleared. Its `append` is a few instructions, so that it can
/// stand at every place where a lane may lose a token; a std::vector's is too much for that.
class release_log {
 public:
  std::span<released_token const> tokens() const noexcept { return {tokens_.data(), count_}; }
  void clear() noexcept { count_ = 0; }
  void append(released_token token) {
    if (count_ == tokens_.size()) grow();
    tokens_[count_++] = token;
  }

 private:
  [[gnu::noinline]] void grow() { tokens_.resize(std::max<std::size_t>(16, 2 * count_)); }

  std::vector<released_token> tokens_;  // the first `count_` are the list
  std::size_t count_ = 0;
};

}  // namespace adore
