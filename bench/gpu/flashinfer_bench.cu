// SPDX-License-Identifier: Apache-2.0
// FlashInfer's batch decode at the shapes of attention_bench, on CUDA cores and on tensor cores, in
// pages of 16 slots, and adore's attention in the same pages. Without a word, pages are [slot,
// kv_head, channel] (NHD, FlashInfer's default), else HND. bf16, 128 channels. Usage:
// flashinfer_bench [options of Google Benchmark] [shape]...
#include "attention_shapes.cuh"
#include "flashinfer/flashinfer_decode.cuh"
#include "flashinfer/flashinfer_tensor_decode.cuh"
#include "flashinfer/paged_kv_of.cuh"
#include "full_cache.cuh"
#include "timing.cuh"
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_pages.cuh>
#include <adore/policies/h2o.hpp>
#include <adore/policies/keep_all.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace adore::bench {
namespace {

using gpu::page_layout;
constexpr index_t page_size = 16;
using on_cuda_cores = flashinfer_example::flashinfer_decode<element, channels>;
using on_tensor_cores = flashinfer_example::flashinfer_tensor_decode<element, channels>;

constexpr index_t pages_of(shape const& s) {
  return (s.slots + page_size - 1) / page_size;
}
gpu::device_buffer<element> random_tokens(shape const& s, index_t heads, std::uint64_t seed) {
  return random_buffer(
      static_cast<std::size_t>(s.sequences) * static_cast<std::size_t>(heads) * channels,
      1.0F,
      seed);
}

/// K and V of all layers in pages, and the step's tensors. Every sequence has `shape.slots` slots
/// in use; where its pages lie is a matter of chance.
struct paged_layers {
  shape of;
  gpu::device_pages<element> store;
  std::vector<index_t> page_ranges;  // [sequence + 1]
  gpu::device_buffer<element> q = random_tokens(of, of.heads, 3), k, v, out{q.size()};

  paged_layers(shape const& s, page_layout layout)
      : of(s),
        store({s.sequences, s.layers(), s.kv_heads, s.slots, channels},
              s.sequences * pages_of(s),
              page_size,
              layout),
        k(random_tokens(s, s.kv_heads, 4)),
        v(random_tokens(s, s.kv_heads, 5)) {
    auto const elements =
        static_cast<std::int64_t>(store.allocated_bytes() / (2 * sizeof(element)));
    fill_random<<<4096, 256>>>(store.keys(0).data, elements, 1.0F, 1);
    fill_random<<<4096, 256>>>(store.values(0).data, elements, 1.0F, 2);
    gpu::check(cudaGetLastError());
    std::vector<index_t> numbers(static_cast<std::size_t>(store.pages()));
    std::iota(numbers.begin(), numbers.end(), 0);
    std::mt19937 random(7);
    std::shuffle(numbers.begin(), numbers.end(), random);
    for (index_t row = 0; row <= s.sequences; ++row) page_ranges.push_back(row * pages_of(s));
    std::vector<index_t> const ends(static_cast<std::size_t>(s.sequences),
                                    (s.slots - 1) % page_size + 1);
    store.set_table_async(nullptr, numbers, page_ranges, ends);
    gpu::check(cudaDeviceSynchronize());
  }
  token_view<element> tokens(gpu::device_buffer<element>& data, index_t heads) const {
    return {data.data(), of.sequences, heads, channels};
  }
};

template <class Decode>
void attention_of_flashinfer(benchmark::State& state, shape s, page_layout layout) {
  paged_layers cache(s, layout);
  Decode decode;
  decode.plan(nullptr, cache.page_ranges, s.heads, s.kv_heads, page_size);
  gpu::check(cudaDeviceSynchronize());
  time_graph(state, static_cast<int>(s.layers()), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < s.layers(); ++layer) {
      decode.attend_async(
          stream,
          flashinfer_example::paged_kv_of(cache.store.keys(layer), cache.store.values(layer)),
          cache.tokens(cache.q, s.heads),
          cache.tokens(cache.out, s.heads),
          nullptr);
    }
  });
  report_rate(state, s);
}

/// @param decides  the policy observes and releases, too
template <class P>
void own_attention(benchmark::State& state, shape s, page_layout layout, P policy, bool decides) {
  paged_layers cache(s, layout);
  gpu::device_ledger<P> books(
      policy, {s.sequences, s.layers(), s.kv_heads, s.slots, channels}, scope::kv_head);
  fill(books);
  time_graph(state, static_cast<int>(s.layers()), [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < s.layers(); ++layer) {
      gpu::attend_args<element, gpu::paged_view<element>> args;
      args.q = cache.tokens(cache.q, s.heads);
      args.k = cache.tokens(cache.k, s.kv_heads);
      args.v = cache.tokens(cache.v, s.kv_heads);
      args.keys = cache.store.keys(layer);
      args.values = cache.store.values(layer);
      args.out = cache.tokens(cache.out, s.heads);
      args.layer = layer;
      args.decides = decides;
      args.overlaps = true;
      args.cut_for_lanes = books.view().attended_lanes();
      gpu::attend_async<channels, 8>(stream, args, books.view(), policy);
    }
    if (decides) gpu::advance_async(stream, books.view());
  });
  report_rate(state, s);
}

}  // namespace
}  // namespace adore::bench

int main(int argc, char** argv) try {
  using namespace adore;
  using namespace adore::bench;
  benchmark::Initialize(&argc, argv);
  for (shape const& s : chosen_shapes(argc, argv)) {
    if (s.heads > 8 * s.kv_heads) {  // FlashInfer's CUDA cores do not take more
      std::fprintf(stderr, "%s: left out, more than 8 query heads per KV head\n", s.name().c_str());
      continue;
    }
    index_t const recent = s.slots / 4;
    h2o const heavy{.heavy = s.slots - 1 - recent, .recent = recent};
    for (page_layout const layout : {page_layout::nhd, page_layout::hnd}) {
      std::string const at = (layout == page_layout::nhd ? "/" : " hnd/") + s.name();
      add("flashinfer" + at, [s, layout](benchmark::State& state) {
        attention_of_flashinfer<on_cuda_cores>(state, s, layout);
      });
      add("flashinfer, tensor cores" + at, [s, layout](benchmark::State& state) {
        attention_of_flashinfer<on_tensor_cores>(state, s, layout);
      });
      add("keep_all, pages" + at, [s, layout](benchmark::State& state) {
        own_attention(state, s, layout, keep_all{}, false);
      });
      add("h2o, pages" + at, [s, layout, heavy](benchmark::State& state) {
        own_attention(state, s, layout, heavy, true);
      });
    }
  }
  benchmark::RunSpecifiedBenchmarks();
} catch (std::exception const& error) {
  std::fprintf(stderr, "flashinfer_bench: %s\n", error.what());
  return 1;
}
