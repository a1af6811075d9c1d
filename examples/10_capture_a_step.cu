// SPDX-License-Identifier: Apache-2.0
// A whole step of a model's cache as a CUDA graph: captured once, replayed for every token, while
// sequences join the batch and leave it. That works because a step's launches depend on shapes
// only; which rows take part, how long they are and where their tokens go stands in device memory.
//
// Look at the host's part: it launches the graph, opens and closes rows, and learns from the ring
// of releases, when it likes, what has left which lane. That is all an engine needs to tell its
// user what was forgotten. It is too late to save K and V: the next step writes over a released
// token's slot, and the ring does not name it. An engine that keeps them elsewhere lists the
// victims before they go (`select_async`, decision_stages.cuh).
//
// This example takes 9 s to compile (nvcc 13.0, -std=c++20 -arch=sm_90; an empty .cu 1 s).
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/policies/h2o.hpp>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <set>
#include <vector>

using adore::h2o;
using adore::index_t;
using adore::position_t;
using adore::gpu::check;
using element = __nv_bfloat16;

constexpr index_t rows = 3, layers = 4, heads = 4, kv_heads = 2, channels = 64;
constexpr index_t most_rows = 4;  // query heads per KV head at most: fewer compile faster
constexpr int steps = 200, look_every = 20;

/// Stands for the model: q, k and v of the newest token of each row, numbers in [-1, 1). Like all
/// that is captured, it gets what changes from device memory. Grid: (row).
__global__ void make_tokens(adore::gpu::ledger_view<h2o> ledger,
                            index_t layer,
                            adore::token_view<element> q,
                            adore::token_view<element> k,
                            adore::token_view<element> v) {
  auto const row = static_cast<index_t>(blockIdx.x);
  adore::gpu::row_books const& sequence = ledger.rows[row];
  if (sequence.count == 0) return;
  auto const fill = [&](adore::token_view<element> const& to, std::uint32_t salt) {
    for (auto i = static_cast<index_t>(threadIdx.x); i < to.heads * channels;
         i += static_cast<index_t>(blockDim.x)) {
      auto x = static_cast<std::uint32_t>(sequence.seed) * 40503U + salt;
      for (index_t const part : {sequence.next, layer, i}) {
        x = (x ^ static_cast<std::uint32_t>(part)) * 0x9E3779B1U;
        x ^= x >> 15U;
      }
      to(row, i / channels)[i % channels] =
          __float2bfloat16(static_cast<float>(x >> 8U) / 8388608.0F - 1.0F);
    }
  };
  fill(q, 1);
  fill(k, 2);
  fill(v, 3);
}

/// A row begins a sequence, or gives it up, before a step.
struct event {
  int step;
  index_t row;
  bool joins;
};
constexpr event events[] = {
    {0, 0, true}, {50, 1, true}, {100, 0, false}, {120, 2, true}, {150, 0, true}};

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU here");
    return 77;
  }
  h2o const policy{.heavy = 12, .recent = 12};
  adore::kv_shape const shape{rows, layers, kv_heads, policy.budget() + 1, channels};
  constexpr index_t lanes_per_row = layers * kv_heads;
  // a step releases at most one token per lane, so the ring is never overrun between two looks
  constexpr unsigned ring = rows * lanes_per_row * look_every;
  adore::gpu::device_store<element> store(shape);
  adore::gpu::device_ledger<h2o> books(policy, shape, adore::scope::kv_head, /*max_new*/ 1, ring);
  adore::gpu::device_buffer<element> q(rows * heads * channels), k(rows * kv_heads * channels),
      v(k.size()), output(q.size());

  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t step_graph = nullptr;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (index_t layer = 0; layer < layers; ++layer) {
    adore::gpu::attend_args<element, adore::kv_view<element>> const args{
        .q = {q.data(), rows, heads, channels},
        .k = {k.data(), rows, kv_heads, channels},
        .v = {v.data(), rows, kv_heads, channels},
        .keys = store.keys(layer),
        .values = store.values(layer),
        .out = {output.data(), rows, heads, channels},
        .layer = layer};
    make_tokens<<<rows, 128, 0, stream>>>(books.view(),
                                          layer,
                                          {q.data(), rows, heads, channels},
                                          {k.data(), rows, kv_heads, channels},
                                          {v.data(), rows, kv_heads, channels});
    check(cudaGetLastError());
    adore::gpu::attend_async<channels, most_rows>(stream, args, books.view(), policy);
  }
  adore::gpu::advance_async(stream, books.view());
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&step_graph, graph, 0));

  std::vector<std::set<position_t>> gone(rows * lanes_per_row);  // [lane] of the present sequence
  std::uint64_t seen = 0;
  auto const read_ring = [&](int step) {
    auto const released = books.released_since(stream, seen);
    seen += released.size();
    for (auto const& entry : released) {
      gone[static_cast<std::size_t>(entry.lane)].insert(entry.position);
    }
    if (released.empty()) return;
    auto const& last = released.back();
    std::printf(
        "before step %3d: %3zu releases, the last: row %d, lane %2d, token %d at token %d\n",
        step,
        released.size(),
        last.row,
        last.lane,
        last.position,
        last.newest);
  };

  int began[rows] = {};
  for (int step = 0; step < steps; ++step) {
    if (step % look_every == 0) read_ring(step);
    for (event const& happens : events) {
      if (happens.step != step) continue;
      read_ring(step);  // what the row released belongs to the sequence that it had
      for (index_t lane = 0; lane < lanes_per_row; ++lane) {
        gone[static_cast<std::size_t>(happens.row * lanes_per_row + lane)].clear();
      }
      if (happens.joins) {
        began[happens.row] = step;
        books.open_async(stream, happens.row, /*seed*/ static_cast<std::uint64_t>(step));
      } else {
        books.close_async(stream, happens.row);
      }
      std::printf(
          "before step %3d: row %d %s\n", step, happens.row, happens.joins ? "joins" : "leaves");
    }
    check(cudaGraphLaunch(step_graph, stream));
  }
  read_ring(steps);

  bool right = books.tokens_without_room(stream) == 0;
  for (index_t row = 0; row < rows; ++row) {
    int const tokens = steps - began[row];
    std::printf("row %d has seen %d tokens, each lane keeps %d\n", row, tokens, policy.budget());
    for (index_t lane = row * lanes_per_row; lane < (row + 1) * lanes_per_row; ++lane) {
      // what is kept and what the ring reported are together all tokens of the sequence
      std::set<position_t> all = gone[static_cast<std::size_t>(lane)];
      std::size_t const released = all.size();
      auto const kept = books.kept(stream, lane);
      all.insert(kept.begin(), kept.end());
      right = right && kept.size() == static_cast<std::size_t>(policy.budget()) &&
              all.size() == released + kept.size() && *all.begin() == 0 &&
              *all.rbegin() == tokens - 1 && all.size() == static_cast<std::size_t>(tokens);
    }
  }
  check(cudaGraphExecDestroy(step_graph));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  if (!right) std::puts("wrong: a token should be either kept or reported as released");
  return right ? 0 : 1;
}
