// SPDX-License-Identifier: Apache-2.0
// How known tokens enter a cache: all at once, in chunks, or one by one; each way is made of the
// cache's own events.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>

namespace adore {

/// In steps of `max_new` tokens (`streamed`: of one).
///
/// @param forward  `void (std::span<index_t const> tokens)`: all layers' append and attend
template <class Cache, class Forward>
void enter_in_steps(Cache& cache, index_t row, std::span<index_t const> tokens, Forward& forward) {
  cache_options const& options = cache.options();
  auto const chunk = options.prompt == prompt_mode::streamed
                         ? std::size_t{1}
                         : static_cast<std::size_t>(options.max_new);
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    auto const part = tokens.subspan(begin, std::min(chunk, tokens.size() - begin));
    cache.begin_step(row_tokens{row, static_cast<index_t>(part.size()), part});
    forward(part);
    cache.end_step();
  }
}

/// In the cache's prompt mode; an empty prompt is none.
template <class Cache, class Forward>
void enter_as_prompt(Cache& cache, index_t row, std::span<index_t const> tokens, Forward& forward) {
  if (tokens.empty()) return;
  if (cache.options().prompt != prompt_mode::full_then_select) {
    enter_in_steps(cache, row, tokens, forward);
    return;
  }
  cache.begin_prompt({row, static_cast<index_t>(tokens.size()), tokens});
  forward(tokens);
  cache.end_step();
}

}  // namespace adore
