// SPDX-License-Identifier: Apache-2.0
// A contestant's cache and controller on the host's engine.
#pragma once

#include "llama/token_scorer.hpp"
#include "request.hpp"
#include <adore/any_cache.hpp>
#include <adore/controller/controller.hpp>

#include <memory>

namespace llama_example {
class engine;
}

namespace comparison {

struct host_contestant {
  std::unique_ptr<adore::controller> controller;        ///< none: the policy takes no scores
  std::unique_ptr<llama_example::token_scorer> scorer;  ///< of that controller
  std::unique_ptr<adore::any_cache> cache;              ///< its rows are open, seeded by number
};

/// @param room  rows, tokens and prompt; the rest comes from the engine and the contestant
host_contestant make_host_contestant(contestant const& entry,
                                     request const& asked,
                                     llama_example::engine const& engine,
                                     adore::cache_request room);

}  // namespace comparison
