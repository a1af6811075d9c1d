// SPDX-License-Identifier: Apache-2.0
// The caches of the engine: the one place where all policies are compiled.
#include "llama/engine.hpp"

namespace llama_example {

adore::cache_options engine::cache_options() const {
  adore::cache_options options;
  options.rotation.emplace(
      model_.rope_channels, model_.rope_base, adore::rope_pairs::adjacent, model_.rope_factors);
  return options;
}

std::unique_ptr<adore::any_cache> engine::make_cache(std::string_view policy,
                                                     adore::cache_request request,
                                                     adore::cache_options options) const {
  request.layers = model_.layers;
  request.kv_heads = model_.kv_heads;
  request.channels = model_.channels;
  return adore::make_cache(policy, request, options);
}

}  // namespace llama_example
