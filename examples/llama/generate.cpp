// SPDX-License-Identifier: Apache-2.0
// Continues a text greedily under a policy: generate MODEL POLICY COUNT TEXT
#include "llama/blas_kernels.hpp"
#include "llama/engine.hpp"
#include "llama/vocabulary.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>

int main(int count, char** arguments) try {
  llama_example::restart_for_wider_blas_kernels(arguments);
  if (count != 5) {
    std::fprintf(stderr,
                 "usage: generate MODEL POLICY COUNT TEXT\n"
                 "  e.g. generate model.gguf 'streaming_llm(sinks=4,window=60)' 64 'Once'\n");
    return 2;
  }
  std::string const path = arguments[1];
  int const wanted = std::atoi(arguments[3]);
  llama_example::vocabulary const vocabulary(path);
  llama_example::model const weights = llama_example::read_model(path);
  llama_example::engine engine(weights, 2);

  std::vector<std::int32_t> tokens = vocabulary.encode(arguments[4]);
  if (tokens.empty() || wanted < 1)
    throw std::runtime_error("there is no text, or no token wanted");
  adore::cache_options options = engine.cache_options();
  options.positions = adore::position_scheme::original;
  auto const cache = engine.make_cache(
      arguments[2], {.tokens = static_cast<adore::index_t>(tokens.size()) + wanted}, options);
  cache->open(0, 0);

  // the prompt at once, then token by token
  std::vector<llama_example::group> groups(1);
  groups[0].cache = cache.get();
  groups[0].is_prompt = true;
  for (int made = 0; made < wanted; ++made) {
    groups[0].rows = {{0, static_cast<adore::index_t>(tokens.size()), tokens}};
    std::span<float const> const logits = engine.step(groups);
    auto const last = logits.last(static_cast<std::size_t>(weights.vocabulary));
    tokens = {static_cast<std::int32_t>(std::max_element(last.begin(), last.end()) - last.begin())};
    groups[0].is_prompt = false;
    std::fputs(vocabulary.decode(tokens.front()).c_str(), stdout);
    std::fflush(stdout);
  }
  std::printf("\n");
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "generate: %s\n", error.what());
  return 2;
}
