// SPDX-License-Identifier: Apache-2.0
// What a decision costs on the host: placing a token, observing its attention, choosing a victim
// and freeing its slot, per lane and step, through the ledger exactly as the cache drives it. Beside
// it, in the same run, the adding of two vectors as long as a lane.

#include "adore/eviction/ledger.hpp"
#include "adore/policies/decayed_h2o.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/h2o_per_age.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/random.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/strided.hpp"
#include "adore/policies/tova.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace adore;

constexpr index_t budget = 512;
constexpr std::size_t rows = 64;  ///< different attention rows, squared norms of keys

/// One sequence, one layer, `lanes` KV heads, in the steady state: each step brings a token and
/// releases one in every lane.
template <class P>
class steady_lanes {
 public:
  explicit steady_lanes(index_t lanes)
      : lanes_(lanes), books_(P::of_budget(budget), {1, 1, lanes, slots, 64}, scope::kv_head, 1) {
    std::mt19937 random(7);
    std::exponential_distribution<float> weight(static_cast<float>(slots));  // mean 1 / slots
    for (float& w : weights_) w = weight(random);
    std::chi_squared_distribution<float> norm(64.0F);
    for (float& n : squared_norms_) n = norm(random);
    books_.open(0, 1);
    for (index_t i = 0; i < 4 * slots; ++i) step();
  }

  void step() {
    books_.forget_released();
    for (index_t lane = 0; lane < lanes_; ++lane) {
      books_.place(lane, 1);
      if constexpr (scores_keys<P>) {
        index_t const slot = books_.new_slots(lane)[0];
        books_.policy().score_key(books_.slots_of(lane).state(slot), squared_norms_[next()]);
      }
    }
    for (index_t lane = 0; lane < lanes_; ++lane) {
      // a row starts at any of `rows` places, so that each lane and step sees other weights
      float const* weights = observes_attention<P> ? weights_.data() + next() : nullptr;
      books_.commit(lane, 1, weights);
    }
    books_.advance(0, 1);
  }

 private:
  static constexpr index_t slots = budget + 1;
  std::size_t next() {
    draw_ = (draw_ * 5 + 3) % squared_norms_.size();  // all of them, in a scattered order
    return observes_attention<P> ? draw_ % rows : draw_;
  }

  index_t lanes_;
  ledger<P> books_;
  std::size_t draw_ = 0;
  std::vector<float> weights_ = std::vector<float>(static_cast<std::size_t>(slots) + rows);
  std::vector<float> squared_norms_ = std::vector<float>(4096);
};

template <class P>
void decide(benchmark::State& state) {
  auto const lanes = static_cast<index_t>(state.range(0));
  steady_lanes<P> cache(lanes);
  for (auto _ : state) cache.step();
  // seconds per lane and step
  state.counters["lane_step"] =
      benchmark::Counter(static_cast<double>(lanes),
                         benchmark::Counter::kIsIterationInvariantRate |
                             benchmark::Counter::kInvert);
}

/// The yardstick: a[i] += b[i] over a lane's 512 floats, in the first-level cache.
void add(benchmark::State& state) {
  std::vector<float> a(static_cast<std::size_t>(budget), 0.0F);
  std::vector<float> b(a.size(), 1.0F);
  for (auto _ : state) {
    float* const sum = a.data();
    float const* const summand = b.data();
    benchmark::DoNotOptimize(sum);
    for (index_t i = 0; i < budget; ++i) sum[i] += summand[i];
    benchmark::ClobberMemory();
  }
}

/// Tells from the compiler's own words how this program was built; bench/CMakeLists.txt asks for
/// -O3 -march=x86-64-v3.
bool describe_build() {
  std::string build = __VERSION__;
#if defined(__OPTIMIZE__)
  build += ", optimised";
#else
  build += ", NOT OPTIMISED";
#endif
#if defined(__AVX2__) && defined(__FMA__)
  build += ", AVX2 and FMA (-O3 -march=x86-64-v3)";
#endif
  benchmark::AddCustomContext("build", build);
  benchmark::AddCustomContext("budget", std::to_string(budget));
  return true;
}
[[maybe_unused]] bool const described_build = describe_build();

BENCHMARK(add);
BENCHMARK_TEMPLATE(decide, sliding_window)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, streaming_llm)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, strided)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, key_norm)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, random_reservoir)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, h2o)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, decayed_h2o)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, h2o_per_age)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, tova)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, random_victim)->Arg(8)->Arg(96);

}  // namespace
