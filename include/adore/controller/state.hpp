// SPDX-License-Identifier: Apache-2.0
// What a controller remembers of one sequence.
#pragma once

#include "adore/types.hpp"

#include <vector>

namespace adore {

/// A controller's memory of one sequence; a copy is a fork.
///
/// Static scores need only the state z, 4 hidden bytes, and those of the tokens heard last, for
/// `controller::truncate`. The other modes keep 4 hidden bytes per token of the text (bilinear
/// twice that, bidirectional four times).
struct controller_state {
  index_t count = 0;          ///< tokens heard
  index_t first = 0;          ///< of these, heard before the last call of `hear`
  std::vector<float> recent;  ///< [1 + count - first, hidden] z before that call, after each token
  std::vector<float> values;  ///< [token, hidden] W_I (p + z) + b_I
  std::vector<float> states;  ///< [token, hidden] z of each token; bilinear and bidirectional
  std::vector<float> backward_products;  ///< [token, gate row]; bidirectional
  std::vector<float> scratch;
};

}  // namespace adore
