// SPDX-License-Identifier: Apache-2.0
// Compares policies by one number: how much of full attention's weight do the tokens hold that a
// policy keeps? No model is needed, only attention; here it is made up, so that the reader knows
// what is in it. The caches are driven by `observe` alone and never see a key or a value.
//
// Look at what each policy loses: the window its sinks, StreamingLLM the heavy hitters, H2O the new
// ones (the old ones live on what they once received), TOVA those that this very query does not ask
// for. The oracle chooses anew for each query, from tokens that the others have released.
#include <adore/adore.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

constexpr int tokens = 1200;
constexpr int budget = 40;

/// Full attention of one query: on two sinks, on the newest tokens, on heavy hitters (one token in
/// 24, asked for by every third query while they are young), and on one token at random.
std::vector<float> attention_of(int query) {
  std::vector<float> weights;
  for (int token = 0; token <= query; ++token) {
    auto const age = static_cast<float>(query - token);
    float weight = 0.01F + 2.0F * std::exp(-age / 4.0F);
    if (token < 2) weight += 6.0F;
    bool const asked_for = token % 24 == 7 && (query + token / 24) % 3 == 0;
    if (asked_for) weight += 4.0F / (1.0F + std::exp((age - 192.0F) / 12.0F));
    if (token == query * 7919 % (query + 1)) weight += 2.0F;
    weights.push_back(weight);
  }
  float const sum = std::accumulate(weights.begin(), weights.end(), 0.0F);
  for (float& weight : weights) weight /= sum;
  return weights;
}

/// Mean share of full attention's weight that a policy's queries find in the cache.
template <class Policy>
double share_held(Policy const& policy) {
  adore::kv_cache cache{adore::host_store{{.slots = budget + 1}},
                        policy,
                        {.positions = adore::position_scheme::original}};
  cache.open(0, /*seed*/ 1);
  std::vector<adore::position_t> columns;  // column i of the weights belongs to position i
  double total = 0.0;
  for (int query = 0; query < tokens; ++query) {
    columns.push_back(query);
    std::vector<float> weights = attention_of(query);
    cache.begin_step();
    float held = 0.0F;
    for (adore::position_t const position : cache.kept(0)) {
      held += weights[static_cast<std::size_t>(position)];
    }
    // softmax over fewer tokens gives each of them more
    for (float& weight : weights) weight /= held;
    cache.observe(0, {weights.data(), 1, 1, query + 1}, columns);
    cache.end_step();
    total += held;
  }
  std::printf("%5.1f %%  %s\n", 100.0 * total / tokens, adore::to_text(policy).c_str());
  return total / tokens;
}

/// The same for the best set of each query.
double share_of_the_oracle() {
  double total = 0.0;
  for (int query = 0; query < tokens; ++query) {
    std::vector<float> weights = attention_of(query);
    std::sort(weights.begin(), weights.end(), std::greater<>{});
    int const attended = std::min(query + 1, budget + 1);
    total += std::accumulate(weights.begin(), weights.begin() + attended, 0.0);
  }
  std::printf("%5.1f %%  oracle\n", 100.0 * total / tokens);
  return total / tokens;
}

int main() {
  std::printf("weight of full attention in a budget of %d of %d tokens\n", budget, tokens);
  double const oracle = share_of_the_oracle();
  double const decayed = share_held(adore::decayed_h2o::of_budget(budget));
  double const h2o = share_held(adore::h2o::of_budget(budget));
  double const tova = share_held(adore::tova::of_budget(budget));
  double const streaming = share_held(adore::streaming_llm::of_budget(budget));
  double const window = share_held(adore::sliding_window::of_budget(budget));
  double const random = share_held(adore::random_victim::of_budget(budget));

  bool const as_expected = oracle > decayed && decayed > h2o && decayed > tova && h2o > random &&
                           streaming > window + 0.2;
  if (!as_expected) std::puts("wrong: the policies should stand in another order");
  return as_expected ? 0 : 1;
}
