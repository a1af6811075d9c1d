// SPDX-License-Identifier: Apache-2.0
// Decode attention with a policy inside, against the same kernel without one, and against reading
// or copying the same bytes; one attention after the other, and each behind a matrix product, as in
// a model. bf16, 128 channels. Usage: attention_bench [options of Google Benchmark] [shape]...
#include "attention_shapes.cuh"
#include "full_cache.cuh"
#include "products.cuh"
#include "timing.cuh"
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/unobserved_step.cuh>
#include <adore/policies/decayed_h2o.hpp>
#include <adore/policies/h2o.hpp>
#include <adore/policies/keep_all.hpp>
#include <adore/policies/sliding_window.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>

namespace adore::bench {
namespace {

enum class extra { none, no_decision, weights, layer_scope, unobserved };

enum class before { attention, product };

template <class P>
void attention(
    benchmark::State& state, shape s, P policy, extra also, before what = before::attention) {
  index_t const layers = s.layers();
  auto const keys = random_buffer(s.layer_elements() * static_cast<std::size_t>(layers), 1.0F, 1);
  auto const values = random_buffer(s.layer_elements() * static_cast<std::size_t>(layers), 1.0F, 2);
  auto const tokens = static_cast<std::size_t>(s.sequences) * channels;
  auto const q = random_buffer(tokens * static_cast<std::size_t>(s.heads), 2.0F, 3);
  auto const k = random_buffer(tokens * static_cast<std::size_t>(s.kv_heads), 1.0F, 4);
  auto const v = random_buffer(tokens * static_cast<std::size_t>(s.kv_heads), 1.0F, 5);
  gpu::device_buffer<element> out(q.size());
  scope const reach = also == extra::layer_scope ? scope::layer : scope::kv_head;
  gpu::device_ledger<P> books(policy, {s.sequences, layers, s.kv_heads, s.slots, channels}, reach);
  fill(books);
  gpu::device_buffer<float> weights(static_cast<std::size_t>(s.sequences * s.kv_heads) *
                                    static_cast<std::size_t>(books.view().stride));
  std::optional<products> between;
  if (what == before::product) between.emplace(s.sequences);
  time_graph(state, static_cast<int>(layers), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < layers; ++layer) {
      if (between) between->multiply_async(stream, layer);
      auto const at = static_cast<std::size_t>(layer) * s.layer_elements();
      gpu::attend_args<element, kv_view<element>> args{
          .q = {q.data(), s.sequences, s.heads, channels},
          .k = {k.data(), s.sequences, s.kv_heads, channels},
          .v = {v.data(), s.sequences, s.kv_heads, channels},
          .keys =
              {const_cast<element*>(keys.data()) + at, s.sequences, s.kv_heads, s.slots, channels},
          .values = {const_cast<element*>(values.data()) + at,
                     s.sequences,
                     s.kv_heads,
                     s.slots,
                     channels},
          .out = {out.data(), s.sequences, s.heads, channels},
          .weights =
              also == extra::weights || also == extra::layer_scope ? weights.data() : nullptr,
          .layer = layer,
          .decides = also != extra::no_decision,
          .overlaps = true,
          .cut_for_lanes = books.view().attended_lanes()};
      if constexpr (observes_attention<P>) {
        if (also == extra::unobserved) {
          gpu::attend_async<channels>(
              stream, args, gpu::unobserved_step(books.view()), gpu::unobserved{policy});
          continue;
        }
      }
      gpu::attend_async<channels>(stream, args, books.view(), policy);
      if (also == extra::layer_scope) {
        gpu::decide_async(
            stream, books.view(), policy, layer, {.weights = weights.data(), .overlaps = true});
      }
    }
    if (also != extra::no_decision) gpu::advance_async(stream, books.view());
  });
  if (!between) report_rate(state, s);
}

/// What to take off the times of attention behind products.
void multiplying(benchmark::State& state, shape s) {
  products between(s.sequences);
  time_graph(state, static_cast<int>(s.layers()), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < s.layers(); ++layer) between.multiply_async(stream, layer);
  });
}

__global__ void __launch_bounds__(512)
    read_all(uint4 const* from, std::int64_t vectors, unsigned* to) {
  unsigned x = 0;
  std::int64_t const stride = gridDim.x * 512LL;
  std::int64_t i = blockIdx.x * 512LL + threadIdx.x;
  for (; i + 7 * stride < vectors; i += 8 * stride) {
    uint4 part[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) part[n] = __ldcs(from + i + n * stride);
#pragma unroll
    for (int n = 0; n < 8; ++n) x ^= part[n].x ^ part[n].y ^ part[n].z ^ part[n].w;
  }
  for (; i < vectors; i += stride) x ^= from[i].x;
  if (x == 0x12345678U) *to = x;
}

void reading(benchmark::State& state, shape s) {
  index_t const layers = s.layers();
  auto const data =
      random_buffer(2 * s.layer_elements() * static_cast<std::size_t>(layers), 1.0F, 1);
  gpu::device_buffer<unsigned> sink(1);
  time_graph(state, static_cast<int>(layers), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < layers; ++layer) {
      auto const at = static_cast<std::size_t>(layer) * 2 * s.layer_elements();
      read_all<<<132 * 4, 512, 0, stream>>>(reinterpret_cast<uint4 const*>(data.data() + at),
                                            static_cast<std::int64_t>(s.layer_bytes() / 16),
                                            sink.data());
    }
  });
}

/// Device copy that moves as many bytes as the attention reads.
void copying(benchmark::State& state, shape s) {
  index_t const layers = s.layers();
  auto const data = random_buffer(s.layer_elements() * static_cast<std::size_t>(layers), 1.0F, 1);
  gpu::device_buffer<element> to(s.layer_elements());
  time_graph(state, static_cast<int>(layers), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < layers; ++layer) {
      gpu::check(cudaMemcpyAsync(to.data(),
                                 data.data() + static_cast<std::size_t>(layer) * s.layer_elements(),
                                 s.layer_bytes() / 2,
                                 cudaMemcpyDeviceToDevice,
                                 stream));
    }
  });
}

}  // namespace
}  // namespace adore::bench

int main(int argc, char** argv) try {
  using namespace adore;
  using namespace adore::bench;
  benchmark::Initialize(&argc, argv);
  for (shape const& s : chosen_shapes(argc, argv)) {
    index_t const recent = s.slots / 4;
    h2o const heavy{.heavy = s.slots - 1 - recent, .recent = recent};
    add("read/" + s.name(), [s](benchmark::State& state) { reading(state, s); });
    add("copy/" + s.name(), [s](benchmark::State& state) { copying(state, s); });
    add("keep_all/" + s.name(),
        [s](benchmark::State& state) { attention(state, s, keep_all{}, extra::no_decision); });
    add("sliding_window/" + s.name(), [s](benchmark::State& state) {
      attention(state, s, sliding_window{.size = s.slots - 1}, extra::none);
    });
    add("h2o/" + s.name(),
        [s, heavy](benchmark::State& state) { attention(state, s, heavy, extra::none); });
    add("h2o, weights exported/" + s.name(),
        [s, heavy](benchmark::State& state) { attention(state, s, heavy, extra::weights); });
    add("h2o, scope layer/" + s.name(),
        [s, heavy](benchmark::State& state) { attention(state, s, heavy, extra::layer_scope); });
    add("h2o, unobserved step/" + s.name(),
        [s, heavy](benchmark::State& state) { attention(state, s, heavy, extra::unobserved); });
    add("product/" + s.name(), [s](benchmark::State& state) { multiplying(state, s); });
    add("product, keep_all/" + s.name(), [s](benchmark::State& state) {
      attention(state, s, keep_all{}, extra::no_decision, before::product);
    });
    add("product, sliding_window/" + s.name(), [s](benchmark::State& state) {
      attention(state, s, sliding_window{.size = s.slots - 1}, extra::none, before::product);
    });
    add("product, h2o/" + s.name(), [s, heavy](benchmark::State& state) {
      attention(state, s, heavy, extra::none, before::product);
    });
  }
  benchmark::RunSpecifiedBenchmarks();
} catch (std::exception const& error) {
  std::fprintf(stderr, "attention_bench: %s\n", error.what());
  return 1;
}
