// SPDX-License-Identifier: Apache-2.0
// The smallest program: twenty tokens pass through a cache that has room for nine, and StreamingLLM
// (the first tokens and a window of the newest) decides which of them stay.
//
// Look at the order of the events of a step. Nothing leaves before `end_step`, so the query of a
// step attends budget + 1 tokens: what was kept, and its own.
#include <adore/adore.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  // one sequence, layer and KV head; a budget of 2 + 6 tokens, and a slot for the newcomer
  adore::kv_cache cache{adore::host_store{{.slots = 9, .channels = 4}},
                        adore::streaming_llm{.sinks = 2, .window = 6},
                        {.positions = adore::position_scheme::original}};
  std::vector<float> query(4), key(4), value(4), output(4);  // [token, head, channel], 1 x 1 x 4

  cache.open(0);
  for (int token = 0; token < 20; ++token) {
    value[0] = static_cast<float>(token);  // a model would compute query, key and value here
    cache.begin_step();
    cache.append(0, {key.data(), 1, 1, 4}, {value.data(), 1, 1, 4});
    cache.attend(0, {query.data(), 1, 1, 4}, {output.data(), 1, 1, 4});
    cache.end_step();
  }

  std::vector<adore::position_t> const kept = cache.kept(0);
  std::printf("kept:");
  for (adore::position_t const position : kept) std::printf(" %d", position);
  std::printf("\n");
  // the query is zero, so all weights are equal and the output is the mean of what it attended
  std::printf("the last query attended 0 1 13 14 ... 19, whose mean is %.3f\n", output[0]);

  if (kept != std::vector<adore::position_t>{0, 1, 14, 15, 16, 17, 18, 19}) {
    std::puts("wrong: two sinks and the six newest tokens should have been kept");
    return 1;
  }
  if (std::abs(output[0] - (0 + 1 + 13 + 14 + 15 + 16 + 17 + 18 + 19) / 9.0F) > 1e-5F) {
    std::puts("wrong: the last query should have attended nine tokens, its own among them");
    return 1;
  }
  return 0;
}
