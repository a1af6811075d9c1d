// SPDX-License-Identifier: Apache-2.0
// What happens to K/V after a release costs: the new token in the victim's slot, a gather of what
// is kept, or the paper's matrix product. Time per step of the keys and values of one layer, with
// one release and one new token, and how many times that of slot reuse it is.

#include "adore/eviction/compact.hpp"
#include "adore/stores/host_store.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <ctime>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace adore;

constexpr index_t kept = 192, kv_heads = 32, channels = 128;

/// Nanoseconds of a step under slot reuse, once it has run: the unit of the ratios.
double slot_reuse_ns = 0.0;

/// One layer in the steady state: `kept` tokens and a slot for the new one.
class layer {
 public:
  layer() : store_({1, 1, kv_heads, kept + 1, channels}) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (float& x : token_) x = normal(random);
    for (index_t head = 0; head < kv_heads; ++head) {
      for (index_t slot = 0; slot <= kept; ++slot) write(head, slot);
    }
    for (index_t& victim : victims_) victim = static_cast<index_t>(random() % (kept + 1));
  }

  void step(compaction kind) {
    for (index_t head = 0; head < kv_heads; ++head) {
      index_t const victim = victims_[next_++ % victims_.size()];
      if (kind != compaction::slot_reuse) {  // all slots but the victim's
        order_.resize(kept);
        std::iota(order_.begin(), order_.begin() + victim, 0);
        std::iota(order_.begin() + victim, order_.end(), victim + 1);
      }
      compact(kind, store_.keys(0), 0, head, order_);
      compact(kind, store_.values(0), 0, head, order_);
      write(head, kind == compaction::slot_reuse ? victim : kept);
    }
  }

 private:
  void write(index_t head, index_t slot) {
    std::copy_n(token_.begin(), channels, store_.keys(0)(0, head, slot));
    std::copy_n(token_.begin(), channels, store_.values(0)(0, head, slot));
  }

  host_store<float> store_;
  std::vector<float> token_ = std::vector<float>(channels);
  std::vector<index_t> victims_ = std::vector<index_t>(1024);
  std::vector<index_t> order_;
  std::size_t next_ = 0;
};

void compact_after_release(benchmark::State& state, compaction kind) {
  layer cache;
  std::clock_t const begin = std::clock();  // of this process: other programs do not count
  for (auto _ : state) {
    cache.step(kind);
    benchmark::ClobberMemory();
  }
  double const ns = 1e9 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC /
                    static_cast<double>(state.iterations());
  if (kind == compaction::slot_reuse) slot_reuse_ns = ns;
  if (slot_reuse_ns > 0.0) state.counters["times_slot_reuse"] = ns / slot_reuse_ns;
}

BENCHMARK_CAPTURE(compact_after_release, slot_reuse, compaction::slot_reuse);
BENCHMARK_CAPTURE(compact_after_release, gather, compaction::gather)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(compact_after_release, matmul, compaction::matmul)->Unit(benchmark::kMicrosecond);

[[maybe_unused]] bool const described = [] {
  benchmark::AddCustomContext("shape",
                              std::to_string(kept) + " kept tokens, " + std::to_string(kv_heads) +
                                  " KV heads, " + std::to_string(channels) +
                                  " channels, float, K and V");
  return true;
}();

}  // namespace
