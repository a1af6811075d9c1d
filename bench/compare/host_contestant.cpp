// SPDX-License-Identifier: Apache-2.0
#include "host_contestant.hpp"

#include "llama/controller_file.hpp"
#include "llama/engine.hpp"

#include <cstdint>

namespace comparison {

host_contestant make_host_contestant(contestant const& entry,
                                     request const& asked,
                                     llama_example::engine const& engine,
                                     adore::cache_request room) {
  host_contestant made;
  adore::cache_options options = engine.cache_options();
  options.reach = asked.reach;
  options.positions = asked.positions;
  options.rebuild = entry.rebuild;
  if (!entry.controller.empty()) {
    made.controller =
        std::make_unique<adore::controller>(llama_example::read_controller(entry.controller));
    made.scorer = std::make_unique<llama_example::token_scorer>(
        *made.controller, engine.weights(), room.rows);
  }
  room.budget = entry.budget;
  made.cache = engine.make_cache(entry.policy, room, options);
  for (adore::index_t row = 0; row < room.rows; ++row) {
    made.cache->open(row, static_cast<std::uint64_t>(row));
  }
  return made;
}

}  // namespace comparison
