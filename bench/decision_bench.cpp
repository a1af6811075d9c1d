// SPDX-License-Identifier: Apache-2.0
// What a decision costs on the host: placing a token, observing its attention, choosing a victim
// and freeing its slot, per lane and step, through the ledger exactly as the cache drives it.
// Beside it, in the same run, the adding of two vectors as long as a lane.

#include "adore/eviction/cache_line_allocator.hpp"
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
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace adore;

constexpr index_t budget = 512;
constexpr std::size_t rows = 64;  ///< places at which an attention row may start
constexpr std::size_t row_step = cache_line_bytes / sizeof(float);  ///< they lie as the cache's do

/// How the norms of keys come: independent of their age, as real ones do, so that a full heap
/// rejects most newcomers at once; or ever smaller, so that each newcomer replaces its top.
enum class norms { independent, shrinking };

/// One sequence, one layer, `lanes` KV heads, in the steady state: each step brings a token and
/// releases one in every lane.
template <class P>
class steady_lanes {
 public:
  steady_lanes(index_t lanes, norms trend)
      : lanes_(lanes),
        trend_(trend),
        books_(P::of_budget(budget), {1, 1, lanes, slots, 64}, scope::kv_head, 1) {
    std::mt19937 random(7);
    std::exponential_distribution<float> weight(static_cast<float>(slots));  // mean 1 / slots
    for (float& w : weights_) w = weight(random);
    books_.open(0, 1);
    for (index_t i = 0; i < 8 * slots; ++i) step();
  }

  void step() {
    books_.forget_released();
    for (index_t lane = 0; lane < lanes_; ++lane) {
      books_.place(lane, 1);
      if constexpr (scores_keys<P>) {
        index_t const slot = books_.new_slots(lane)[0];
        books_.policy().score_key(books_.slots_of(lane).state(slot), squared_norm());
      }
    }
    for (index_t lane = 0; lane < lanes_; ++lane) {
      // each lane and step sees other weights
      float const* weights =
          observes_attention<P> ? weights_.data() + draw() % rows * row_step : nullptr;
      books_.commit(lane, 1, weights);
    }
    books_.advance(0, 1);
  }

 private:
  static constexpr index_t slots = budget + 1;
  std::uint32_t draw() { return drawn_ = drawn_ * 1664525U + 1013904223U, drawn_ >> 8U; }
  float squared_norm() {
    float const random = static_cast<float>(draw()) * 0x1p-24F;
    if (trend_ == norms::independent) return 64.0F + random;
    return 8192.0F + random - static_cast<float>(books_.next_position(0)) / budget;
  }

  index_t lanes_;
  norms trend_;
  ledger<P> books_;
  std::uint32_t drawn_ = 1;
  std::vector<float, cache_line_allocator<float>> weights_ =
      decltype(weights_)(static_cast<std::size_t>(slots) + rows * row_step);
};

template <class P, norms Trend = norms::independent>
void decide(benchmark::State& state) {
  auto const lanes = static_cast<index_t>(state.range(0));
  steady_lanes<P> cache(lanes, Trend);
  for (auto _ : state) cache.step();
  // seconds per lane and step
  state.counters["lane_step"] = benchmark::Counter(
      static_cast<double>(lanes),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// The yardstick's loop. Aligned, so that it never lies across two cache lines, which would double
/// its time; not inlined, so that nothing is known of `b`.
[[gnu::noinline, gnu::aligned(64)]] void add_vectors(float* __restrict a,
                                                     float const* __restrict b) {
  for (index_t i = 0; i < budget; ++i) a[i] += b[i];
}

/// The yardstick: a[i] += b[i] over a lane's 512 floats, in the first-level cache.
void add(benchmark::State& state) {
  alignas(64) static float a[budget];
  alignas(64) static float b[budget];
  for (auto _ : state) {
    add_vectors(a, b);
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
BENCHMARK_TEMPLATE(decide, key_norm, norms::shrinking)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, random_reservoir)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, h2o)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, decayed_h2o)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, h2o_per_age)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, tova)->Arg(8)->Arg(96);
BENCHMARK_TEMPLATE(decide, random_victim)->Arg(8)->Arg(96);

}  // namespace
