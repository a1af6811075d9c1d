// SPDX-License-Identifier: Apache-2.0
// Watches which tokens of a text a controller releases, and which come back:
//   watch MODEL CONTROLLER BUDGET REBUILD TEXT
// One line per step, one letter per token so far: # kept, + released and back in this step, .
// released. Under the last line, the tokens that came back most often. watch_plot.py draws it.
#include "llama/blas_kernels.hpp"
#include "llama/controller_file.hpp"
#include "llama/engine.hpp"
#include "llama/token_scorer.hpp"
#include "llama/vocabulary.hpp"
#include <adore/rebuild_text.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
  llama_example::restart_for_wider_blas_kernels(arguments);
  if (count != 6) {
    std::fprintf(stderr,
                 "usage: watch MODEL CONTROLLER BUDGET REBUILD TEXT\n"
                 "  e.g. watch model.gguf SmolLM2-135M-query.safetensors 24 'rebuild(count=4)' "
                 "'Once upon a time ...'\n");
    return 2;
  }
  std::string const path = arguments[1];
  llama_example::vocabulary const vocabulary(path);
  llama_example::model const weights = llama_example::read_model(path);
  llama_example::engine engine(weights, 2);
  adore::controller const controller(llama_example::read_controller(arguments[2]));
  llama_example::token_scorer scorer(controller, weights, 1);
  std::vector<std::int32_t> const tokens = vocabulary.encode(arguments[5]);

  adore::cache_options options = engine.cache_options();
  options.rebuild = adore::rebuild_of(arguments[4]);
  auto const cache =
      engine.make_cache("adaptive_release",
                        {.tokens = static_cast<adore::index_t>(tokens.size()),
                         .budget = static_cast<adore::index_t>(std::atoi(arguments[3]))},
                        options);
  cache->open(0, 0);

  std::vector<int> returns(tokens.size(), 0);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    std::string line(t + 1, '.');
    llama_example::group part{
        .cache = cache.get(), .rows = {{0, 1, {&tokens[t], 1}}}, .scorer = &scorer};
    // seen while the step attends, since rebuilt tokens may leave with it
    part.watch = [&](adore::attention_record const& seen) {
      if (seen.layer > 0 || seen.kv_head > 0) return;
      for (adore::position_t const p : seen.positions) line[static_cast<std::size_t>(p)] = '#';
      for (adore::position_t const p : cache->back(0)) line[static_cast<std::size_t>(p)] = '+';
    };
    engine.step({&part, 1});
    for (std::size_t p = 0; p < line.size(); ++p) returns[p] += line[p] == '+' ? 1 : 0;
    std::printf("%s\n", line.c_str());
  }

  std::vector<std::size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return returns[a] > returns[b];
  });
  for (std::size_t i = 0; i < std::min<std::size_t>(10, order.size()); ++i) {
    if (returns[order[i]] == 0) break;
    std::printf("token %zu came back %d times: '%s'\n",
                order[i],
                returns[order[i]],
                vocabulary.decode(tokens[order[i]]).c_str());
  }
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "watch: %s\n", error.what());
  return 2;
}
