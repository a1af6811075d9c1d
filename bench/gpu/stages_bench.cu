// SPDX-License-Identifier: Apache-2.0
// The stages by themselves, for engines that keep their own attention, each beside kernels that
// only read or copy the same bytes. bf16, 128 channels, 64 sequences; all buffers together far
// exceed L2, as they do when a model's layers follow each other.
#include "full_cache.cuh"
#include "timing.cuh"
#include "yardsticks.cuh"
#include <adore/gpu/append.cuh>
#include <adore/gpu/best_of.cuh>
#include <adore/gpu/compact.cuh>
#include <adore/gpu/compact_ledger.cuh>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/gpu/paged_view.cuh>
#include <adore/gpu/rope.cuh>
#include <adore/gpu/weights.cuh>
#include <adore/policies/key_norm.hpp>
#include <adore/policies/sliding_window.hpp>
#include <adore/policies/streaming_llm.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace adore::bench {
namespace {

using element = __nv_bfloat16;
constexpr index_t channels = 128, sequences = 64, heads = 32;

constexpr std::size_t elements_of(index_t rows, index_t of_row, index_t length = channels) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(of_row) *
         static_cast<std::size_t>(length);
}
constexpr std::size_t token_elements = elements_of(sequences, heads);  // K or V of a layer's step
constexpr std::size_t token_bytes = token_elements * sizeof(element);

/// Numbers of a normal distribution, or all the same.
__global__ void fill_priorities(float* data, std::int64_t count, bool equal) {
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    float const unit =
        (static_cast<float>(scrambled(static_cast<std::uint64_t>(i)) >> 9U) + 0.5F) / 8388608.0F;
    data[i] = equal ? 1.0F : normcdfinvf(unit);
  }
}
gpu::device_buffer<float> priorities(std::size_t count, bool equal) {
  gpu::device_buffer<float> buffer(count);
  fill_priorities<<<4096, 256>>>(buffer.data(), static_cast<std::int64_t>(count), equal);
  gpu::check(cudaGetLastError());
  gpu::check(cudaDeviceSynchronize());
  return buffer;
}

// ------------------------------------------------------------------ nothing

void empty(benchmark::State& state) {
  constexpr int kernels = 64;
  time_graph(state, kernels, [](cudaStream_t stream) {
    for (int i = 0; i < kernels; ++i) {
      do_nothing<<<1, 32, 0, stream>>>();
      gpu::check(cudaGetLastError());
    }
  });
}

// ------------------------------------------------------------------ append

constexpr index_t append_layers = 64;  // 64 MiB read and as much written

/// K and V of one new token per sequence go into lanes of 200 slots.
template <class P>
void append(benchmark::State& state, P policy) {
  gpu::device_store<element> store({sequences, append_layers, heads, 200, channels});  // 13.4 GB
  gpu::device_ledger<P> books(policy, store.shape(), scope::kv_head);
  fill(books);
  auto const kv = random_buffer(2 * append_layers * token_elements, 1.0F, 1);
  time_graph(state, append_layers, [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < append_layers; ++layer) {
      element const* const k = kv.data() + 2 * static_cast<std::size_t>(layer) * token_elements;
      gpu::append_async(stream,
                        books.view(),
                        layer,
                        store.keys(layer),
                        store.values(layer),
                        {k, sequences, heads, channels},
                        {k + token_elements, sequences, heads, channels});
    }
  });
}

/// So many bytes from one place to another, in one piece.
void copy(benchmark::State& state, std::size_t bytes, int units, bool by_kernel) {
  gpu::device_buffer<std::byte> from(bytes * static_cast<std::size_t>(units)), to(from.size());
  gpu::check(cudaMemset(from.data(), 1, from.bytes()));
  gpu::check(cudaDeviceSynchronize());
  time_graph(state, units, [&](cudaStream_t stream) {
    for (std::size_t at = 0; at < from.size(); at += bytes) {
      if (by_kernel) {
        copy_once_async(stream, from.data() + at, to.data() + at, bytes);
      } else {
        gpu::check(cudaMemcpyAsync(
            to.data() + at, from.data() + at, bytes, cudaMemcpyDeviceToDevice, stream));
      }
    }
  });
}
/// So many bytes, read once.
void read(benchmark::State& state, std::size_t bytes, int units) {
  gpu::device_buffer<std::byte> from(bytes * static_cast<std::size_t>(units));
  gpu::device_buffer<unsigned> sink(1);
  gpu::check(cudaMemset(from.data(), 1, from.bytes()));
  gpu::check(cudaDeviceSynchronize());
  time_graph(state, units, [&](cudaStream_t stream) {
    for (std::size_t at = 0; at < from.size(); at += bytes) {
      read_once_async(stream, from.data() + at, bytes, sink.data());
    }
  });
}

// ------------------------------------------------------------------ decide

/// The whole selection of a step whose sequences are one lane each: a decision and the step's end.
template <class P>
void decide_for_model(benchmark::State& state, P policy, index_t slots) {
  constexpr int steps = 64;
  gpu::device_ledger<P> books(policy, {sequences, 32, heads, slots, channels}, scope::model);
  fill_ledger<<<sequences, 128>>>(books.view(), 0);  // from the first token on, sinks included
  gpu::check(cudaGetLastError());
  gpu::check(cudaDeviceSynchronize());
  time_graph(state, steps, [&](cudaStream_t stream) {
    for (int step = 0; step < steps; ++step) {
      gpu::decide_async(stream, books.view(), policy, 0, {.advances = true});
    }
  });
}
/// The step's end where layers decide one by one.
void advance(benchmark::State& state) {
  constexpr int steps = 64;
  gpu::device_ledger<sliding_window> books(
      sliding_window{.size = 199}, {sequences, 32, heads, 200, channels}, scope::model);
  fill(books);
  time_graph(state, steps, [&](cudaStream_t stream) {
    for (int step = 0; step < steps; ++step) gpu::advance_async(stream, books.view());
  });
}

constexpr index_t decide_layers = 64;

/// Slots of a lane have norms, so that victims are not always the oldest.
__global__ void fill_norms(gpu::ledger_view<key_norm> ledger) {
  auto const lane = static_cast<index_t>(blockIdx.x);
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.slots;
       s += static_cast<index_t>(blockDim.x)) {
    auto const cell = static_cast<std::uint64_t>(ledger.cell(lane) + s);
    ledger.states_of(lane)[s].squared_norm = static_cast<float>(scrambled(cell) >> 8U) * 1e-5F;
  }
}

/// One layer whose KV heads are a lane each.
template <class P>
void decide_for_heads(benchmark::State& state, P policy, index_t slots) {
  gpu::device_ledger<P> books(
      policy, {sequences, decide_layers, heads, slots, channels}, scope::kv_head);
  fill(books);
  if constexpr (scores_keys<P>) {
    fill_norms<<<sequences * decide_layers * heads, 128>>>(books.view());
    gpu::check(cudaGetLastError());
    gpu::check(cudaDeviceSynchronize());
  }
  auto const norms = priorities(static_cast<std::size_t>(sequences * heads), false);
  time_graph(state, decide_layers, [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < decide_layers; ++layer) {
      gpu::decide_async(stream, books.view(), policy, layer, {.key_norms = norms.data()});
    }
    gpu::advance_async(stream, books.view());
  });
}
/// Bytes that a decision looks at in one layer, padding between lanes included.
std::size_t decision_bytes(index_t slots, std::size_t of_slot) {
  auto const stride = static_cast<std::size_t>((slots + 31) / 32 * 32);
  return static_cast<std::size_t>(sequences * heads) * stride * of_slot;
}

// ------------------------------------------------------------------ best_of

struct prompts {
  index_t lanes, tokens, keep;
  std::size_t elements() const {
    return static_cast<std::size_t>(lanes) * static_cast<std::size_t>(tokens);
  }
  /// Together 200 MB at least.
  int units() const { return static_cast<int>(200'000'000 / (elements() * sizeof(float))) + 1; }
  std::string name() const {
    return std::to_string(lanes) + "x" + std::to_string(tokens) + " to " + std::to_string(keep);
  }
};

void best_of(benchmark::State& state, prompts const& p, bool equal) {
  auto const data = priorities(p.elements() * static_cast<std::size_t>(p.units()), equal);
  gpu::device_buffer<position_t> kept(elements_of(p.lanes, p.keep, 1));
  gpu::device_buffer<index_t> counts(static_cast<std::size_t>(p.lanes));
  time_graph(state, p.units(), [&](cudaStream_t stream) {
    for (std::size_t at = 0; at < data.size(); at += p.elements()) {
      gpu::best_of_async(stream,
                         {.priorities = data.data() + at,
                          .stride = p.tokens,
                          .lanes = p.lanes,
                          .most = p.tokens,
                          .tokens = {.all = p.tokens},
                          .keep = {.all = p.keep},
                          .kept = kept.data(),
                          .kept_stride = p.keep,
                          .counts = counts.data()});
    }
  });
}

// ------------------------------------------------------------------ weights

constexpr index_t weight_slots = 1024, weight_layers = 4, page_slots = 16;

/// Attention of a layer's step from q, K and the log-sum-exp, of `heads` query heads.
///
/// @param paged  K in pages that lie in any order
void weights(benchmark::State& state, index_t kv_heads, bool paged) {
  std::size_t const layer = elements_of(sequences, kv_heads * weight_slots);
  auto keys = random_buffer(layer * std::size_t{weight_layers}, 1.0F, 1);
  auto const q = random_buffer(token_elements, 2.0F, 2);
  gpu::device_buffer<float> const lse(
      std::vector<float>(static_cast<std::size_t>(sequences * heads), 8.0F));
  sliding_window const policy{.size = weight_slots - 1};
  gpu::device_ledger<sliding_window> books(
      policy, {sequences, weight_layers, kv_heads, weight_slots, channels}, scope::kv_head);
  fill(books);

  constexpr index_t pages = weight_slots / page_slots;  // of a sequence
  std::vector<index_t> numbers(static_cast<std::size_t>(sequences * pages));
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937(1));
  std::vector<index_t> ranges;
  for (index_t row = 0; row <= sequences; ++row) ranges.push_back(row * pages);
  gpu::device_buffer<index_t> const page_numbers(numbers), page_ranges(ranges);
  gpu::device_buffer<index_t> const last_lengths(std::vector<index_t>(sequences, page_slots));

  gpu::device_buffer<float> out(elements_of(sequences, kv_heads, weight_slots));
  gpu::weights_args<element> const args{.q = {q.data(), sequences, heads, channels},
                                        .lse = lse.data(),
                                        .scale = 0.088F,
                                        .out = out.data(),
                                        .out_stride = weight_slots};
  time_graph(state, weight_layers, [&](cudaStream_t stream) {
    for (index_t l = 0; l < weight_layers; ++l) {
      gpu::ledger_slots<sliding_window> const slots{books.view(), l};
      element* const at = keys.data() + static_cast<std::size_t>(l) * layer;
      if (paged) {
        gpu::paged_view<element> const view(at,
                                            gpu::page_layout::hnd,
                                            sequences,
                                            kv_heads,
                                            weight_slots,
                                            channels,
                                            page_slots,
                                            page_numbers.data(),
                                            page_ranges.data(),
                                            last_lengths.data());
        gpu::weights_async(stream, args, slots, view);
      } else {
        kv_view<element> const view(at, sequences, kv_heads, weight_slots, channels);
        gpu::weights_async(stream, args, slots, view);
      }
    }
  });
}

// ------------------------------------------------------------------ compaction

constexpr index_t compact_layers = 4, compact_slots = 200;
constexpr std::size_t compact_bytes =  // K and V of a layer
    2 * elements_of(sequences, heads* compact_slots) * sizeof(element);

/// Where each lane's tokens are: all in other slots than they should be, or closed up but for one
/// released token, of any age.
enum class disorder { all, one_hole };

__global__ void one_hole(gpu::compaction_order order, index_t slots, index_t stride) {
  auto const lane = static_cast<index_t>(blockIdx.x);
  auto const hole = static_cast<index_t>(scrambled(static_cast<std::uint64_t>(lane)) %
                                         static_cast<std::uint32_t>(slots));
  for (auto i = static_cast<index_t>(threadIdx.x); i < slots - 1;
       i += static_cast<index_t>(blockDim.x)) {
    order.slots[static_cast<std::int64_t>(lane) * stride + i] = i < hole ? i : i + 1;
  }
  if (threadIdx.x == 0) order.lanes[lane] = {slots - 1, slots - 1};
}

/// Full lanes with their store and their order.
struct compaction_case {
  gpu::device_store<element> store{{sequences, compact_layers, heads, compact_slots, channels}};
  gpu::device_ledger<sliding_window> books{
      sliding_window{.size = compact_slots - 1}, store.shape(), scope::kv_head};
  gpu::device_buffer<std::byte> order_memory{gpu::compaction_order_bytes(books.view())};
  gpu::device_buffer<std::byte> books_memory{gpu::compact_ledger_workspace_bytes(books.view())};
  gpu::compaction_order order;
  unsigned lanes = static_cast<unsigned>(sequences * compact_layers * heads);

  explicit compaction_case(disorder how) {
    fill(books);
    for (index_t layer = 0; layer < compact_layers;
         ++layer) {  // numbers, since a product is formed
      for (element* data : {store.keys(layer).data, store.values(layer).data}) {
        constexpr auto count = static_cast<std::int64_t>(compact_bytes / 2 / sizeof(element));
        fill_random<<<4096, 256>>>(data, count, 1.0F, static_cast<std::uint64_t>(layer));
      }
    }
    order = gpu::order_lanes_async(nullptr, books.view(), order_memory.data());
    if (how == disorder::one_hole) {
      one_hole<<<lanes, 128>>>(order, compact_slots, books.view().stride);
    }
    gpu::check(cudaGetLastError());
    gpu::check(cudaDeviceSynchronize());
  }
};

/// What happens to a layer's K and V after a release, and the writing of the next token, which is
/// all that slot reuse has to do. The order stays, so that every repetition moves as much.
void compact(benchmark::State& state, compaction kind, disorder how) {
  compaction_case c(how);
  auto const kv = random_buffer(2 * token_elements, 1.0F, 1);
  time_graph(state, compact_layers, [&](cudaStream_t stream) {
    for (index_t layer = 0; layer < compact_layers; ++layer) {
      gpu::compact_async(
          stream, kind, c.books.view(), c.order, layer, c.store.keys(layer), c.store.values(layer));
      gpu::append_async(stream,
                        c.books.view(),
                        layer,
                        c.store.keys(layer),
                        c.store.values(layer),
                        {kv.data(), sequences, heads, channels},
                        {kv.data() + token_elements, sequences, heads, channels});
    }
  });
}
/// What moving costs besides, for all lanes of all layers at once; reported per layer.
void order(benchmark::State& state) {
  compaction_case c(disorder::all);
  time_graph(state, compact_layers, [&](cudaStream_t stream) {
    gpu::order_lanes_async(stream, c.books.view(), c.order_memory.data());
  });
}
void move_books(benchmark::State& state) {
  compaction_case c(disorder::all);
  time_graph(state, compact_layers, [&](cudaStream_t stream) {
    gpu::compact_ledger_async(stream, c.books.view(), c.order, c.books_memory.data());
  });
}

// ------------------------------------------------------------------ rotate

constexpr index_t rotate_kv_heads = 8;
constexpr int rotate_units = 128;
constexpr std::size_t rotate_elements = elements_of(sequences, heads + rotate_kv_heads);

void rotate(benchmark::State& state) {
  auto qk = random_buffer(rotate_elements * std::size_t{rotate_units}, 1.0F, 1);
  gpu::device_rope const rope(channels, 10000.0, rope_pairs::halves);
  std::vector<position_t> positions;
  for (index_t row = 0; row < sequences; ++row) positions.push_back(1000 + 37 * row);
  gpu::device_buffer<position_t> const of_token(positions);
  time_graph(state, rotate_units, [&](cudaStream_t stream) {
    for (std::size_t at = 0; at < qk.size(); at += rotate_elements) {
      element* const q = qk.data() + at;
      gpu::rotate_async<element>(stream,
                                 rope.view(),
                                 gpu::given_positions{of_token.data()},
                                 {q, sequences, heads, channels},
                                 {q + token_elements, sequences, rotate_kv_heads, channels});
    }
  });
}

// ------------------------------------------------------------------ all of them

using benchmark::State;

void add_append() {
  std::string const shape = "/64x32x128";
  add("append: sliding_window" + shape, [](State& s) { append(s, sliding_window{.size = 199}); });
  add("append: copy kernel" + shape,
      [](State& s) { copy(s, 2 * token_bytes, append_layers, true); });
  add("append: memcpy" + shape, [](State& s) { copy(s, 2 * token_bytes, append_layers, false); });
}
void add_decide() {
  for (index_t const slots : {200, 1024}) {
    sliding_window const window{.size = slots - 1};
    streaming_llm const streaming{.sinks = 4, .window = slots - 5};
    key_norm const norm{.size = slots - 1};
    std::string const model = "/64x" + std::to_string(slots);
    std::string const kv_heads = "/64x32x" + std::to_string(slots);
    add("decide, step: sliding_window" + model,
        [=](State& s) { decide_for_model(s, window, slots); });
    add("decide, step: streaming_llm" + model,
        [=](State& s) { decide_for_model(s, streaming, slots); });
    add("decide, layer: sliding_window" + kv_heads,
        [=](State& s) { decide_for_heads(s, window, slots); });
    add("decide, layer: reading positions" + kv_heads,
        [=](State& s) { read(s, decision_bytes(slots, sizeof(position_t)), decide_layers); });
    add("decide, layer: key_norm" + kv_heads, [=](State& s) { decide_for_heads(s, norm, slots); });
    add("decide, layer: reading positions and norms" + kv_heads, [=](State& s) {
      read(s, decision_bytes(slots, sizeof(position_t) + sizeof(float)), decide_layers);
    });
  }
  add("decide, step: advance alone/64", advance);
}
void add_best_of() {
  for (prompts const p : {prompts{2048, 8192, 192}, prompts{8, 131072, 1024}}) {
    add("best_of: normal/" + p.name(), [p](State& s) { best_of(s, p, false); });
    add("best_of: all equal/" + p.name(), [p](State& s) { best_of(s, p, true); });
    add("best_of: reading priorities/" + p.name(),
        [p](State& s) { read(s, p.elements() * sizeof(float), p.units()); });
  }
}
void add_weights() {
  for (index_t const kv_heads : {32, 8}) {
    std::string const shape = "/64x32/" + std::to_string(kv_heads) + "x1024";
    std::size_t const bytes = elements_of(sequences, kv_heads * weight_slots) * sizeof(element);
    add("weights: dense" + shape, [=](State& s) { weights(s, kv_heads, false); });
    add("weights: pages of 16" + shape, [=](State& s) { weights(s, kv_heads, true); });
    add("weights: reading K" + shape, [=](State& s) { read(s, bytes, weight_layers); });
  }
}
void add_compact() {
  std::string const shape = "/64x32x200x128";
  add("compact: slot_reuse" + shape,
      [](State& s) { compact(s, compaction::slot_reuse, disorder::one_hole); });
  add("compact: gather, one hole" + shape,
      [](State& s) { compact(s, compaction::gather, disorder::one_hole); });
  add("compact: gather, all move" + shape,
      [](State& s) { compact(s, compaction::gather, disorder::all); });
  add("compact: matmul" + shape,
      [](State& s) { compact(s, compaction::matmul, disorder::one_hole); });
  add("compact: order of the lanes" + shape, order);
  add("compact: books" + shape, move_books);
  add("compact: memcpy of K and V" + shape,
      [](State& s) { copy(s, compact_bytes, compact_layers, false); });
}
void add_rotate() {
  std::string const shape = "/64x(32+8)x128";
  add("rotate: q and k" + shape, rotate);
  add("rotate: copy kernel" + shape,
      [](State& s) { copy(s, rotate_elements * sizeof(element), rotate_units, true); });
}

}  // namespace
}  // namespace adore::bench

int main(int argc, char** argv) {
  using namespace adore::bench;
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("stages_bench: no device");
    return 77;
  }
  add("empty kernel: in a graph/1", empty);
  add_append();
  add_decide();
  add_best_of();
  add_weights();
  add_compact();
  add_rotate();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
