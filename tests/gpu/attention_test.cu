// SPDX-License-Identifier: Apache-2.0
// Fused decode attention: what it puts out, what it stores, what it lets the policy decide.
#include "support/attention_case.cuh"
#include "support/attention_step.cuh"
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/rope.cuh>
#include <adore/policies/h2o.hpp>
#include <adore/policies/sliding_window.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace adore::testing {
namespace {

template <class T, int Channels>
void check_shapes() {
  std::uint64_t seed = 1;
  for (index_t const group : {1, 4, 8, 16}) {
    check_step<T, Channels>(h2o{.heavy = 10, .recent = 10}, {4, 2, group, 40, 1}, ++seed);
    check_step<T, Channels>(sliding_window{.size = 100}, {3, 1, group, 200, 1}, ++seed);
  }
  check_step<T, Channels>(h2o{.heavy = 10, .recent = 10}, {3, 2, 3, 77, 5}, ++seed);
  check_step<T, Channels>(h2o{.heavy = 500, .recent = 100}, {2, 1, 2, 1500, 1}, ++seed);
}

TEST_CASE("attention is exact, appends and decides: bfloat16, 128 channels") {
  check_shapes<__nv_bfloat16, 128>();
}
TEST_CASE("attention is exact, appends and decides: bfloat16, 64 channels") {
  check_shapes<__nv_bfloat16, 64>();
}
TEST_CASE("attention is exact, appends and decides: bfloat16, 96 channels") {
  check_shapes<__nv_bfloat16, 96>();
}
TEST_CASE("attention is exact, appends and decides: bfloat16, 256 channels") {
  check_shapes<__nv_bfloat16, 256>();
}
TEST_CASE("attention is exact, appends and decides: half, 128 channels") {
  check_shapes<__half, 128>();
}
TEST_CASE("attention is exact, appends and decides: float, 64 channels") {
  check_shapes<float, 64>();
}

TEST_CASE("every group from 1 to 16 and every number of new tokens from 1 to 16 are taken") {
  for (index_t n = 1; n <= 16; ++n) {
    check_step<__nv_bfloat16, 64>(
        h2o{.heavy = 10, .recent = 10}, {3, 2, n, 50, 1}, 100U + static_cast<unsigned>(n));
    check_step<__nv_bfloat16, 64>(
        h2o{.heavy = 10, .recent = 10}, {3, 2, 4, 60, n}, 200U + static_cast<unsigned>(n));
  }
}

TEST_CASE("weights are reduced by mean and maximum, and scaled as one asks") {
  for (gqa_reduction const reduction : {gqa_reduction::mean, gqa_reduction::max}) {
    attention_shape shape{4, 2, 4, 40, 1};
    shape.reduction = reduction;
    shape.scale = 0.05F;
    check_step<__nv_bfloat16, 64>(h2o{.heavy = 10, .recent = 10}, shape, 401);
    shape.max_new = 5;  // several passes
    shape.slots = 300;
    check_step<__nv_bfloat16, 64>(h2o{.heavy = 10, .recent = 10}, shape, 402);
  }
}

TEST_CASE("lanes of two slots are as good as others") {
  check_step<__nv_bfloat16, 64>(h2o{.heavy = 1, .recent = 0}, {3, 2, 4, 2, 1}, 403);
  check_step<__nv_bfloat16, 64>(sliding_window{.size = 1}, {3, 1, 1, 2, 1}, 404);
}

TEST_CASE("lanes of thousands of slots are shared by several blocks") {
  for (index_t const slots : {2048, 5000, 17000}) {
    check_step<__nv_bfloat16, 128>(
        h2o{.heavy = 10, .recent = 10}, {3, 1, 4, slots, 1}, static_cast<unsigned>(slots));
    check_step<__nv_bfloat16, 128>(
        h2o{.heavy = 10, .recent = 10}, {2, 1, 8, slots, 3}, static_cast<unsigned>(slots + 1));
  }
}

TEST_CASE("lanes of thousands of slots have sixteen query rows") {
  for (index_t const slots : {2048, 5000, 17000}) {
    check_step<__nv_bfloat16, 128>(
        h2o{.heavy = 10, .recent = 10}, {2, 1, 16, slots, 1}, static_cast<unsigned>(slots + 2));
  }
  // where blocks of eight warps would have no room, and of four
  check_step<__nv_bfloat16, 256>(h2o{.heavy = 10, .recent = 10}, {2, 1, 16, 1000, 1}, 78);
  check_step<__nv_bfloat16, 256>(h2o{.heavy = 10, .recent = 10}, {1, 1, 16, 30'000, 1}, 79);
}

TEST_CASE("blocks that take lane after lane, some of them idle, mix none of them up") {
  // more lanes than the device has room for at once, each seventh row idle
  check_step<__nv_bfloat16, 128>(h2o{.heavy = 100, .recent = 50}, {80, 4, 1, 200, 1}, 301);
  check_step<__nv_bfloat16, 128>(h2o{.heavy = 20, .recent = 20}, {150, 4, 4, 60, 1}, 302);
  check_step<__nv_bfloat16, 128>(h2o{.heavy = 300, .recent = 100}, {70, 4, 1, 600, 1}, 303);
  check_step<__nv_bfloat16, 64>(h2o{.heavy = 900, .recent = 100}, {70, 4, 1, 1500, 1}, 304);
  check_step<__nv_bfloat16, 64>(sliding_window{.size = 900}, {70, 4, 2, 1500, 2}, 305);
  check_step<__half, 128>(h2o{.heavy = 100, .recent = 50}, {80, 4, 8, 230, 1}, 306);
  check_step<__half, 64>(h2o{.heavy = 20, .recent = 20}, {100, 4, 2, 70, 6}, 307);
  check_step<float, 64>(h2o{.heavy = 30, .recent = 50}, {150, 2, 2, 100, 1}, 308);
}

/// Attention alone, where no score is above -100: what softmax is relative to must come from them.
template <class T>
void check_low_scores(index_t group) {
  CAPTURE(group);
  constexpr int channels = 128;
  attention_shape const shape{1, 1, group, 300, 1, 4.0F};
  attention_case<T, channels> c(shape, 40U + static_cast<unsigned>(group));
  h2o const policy{.heavy = 100, .recent = 100};
  std::mt19937_64 engine(4);
  gpu::device_ledger<h2o> books(policy, c.cache, scope::kv_head);
  row_snapshot const before = random_books(books.view(), 150, 190, 220, engine);
  books.restore(nullptr, 0, before);
  auto const positions = positions_of(books, 0);
  gpu::attend_async<channels>(nullptr, c.args(), books.view(), policy);
  auto const out = c.out.to_host(nullptr);
  auto const lse = c.lse.to_host(nullptr);
  for (index_t head = 0; head < group; ++head) {
    auto const exact = attend_exactly(c, positions, 0, head, 0, before.next);
    CHECK(exact.lse < -89.0);  // natural: below the smallest float in base 2
    CHECK(std::abs(lse[static_cast<std::size_t>(head)] - exact.lse) < 1e-3);
    for (int i = 0; i < channels; ++i) {
      auto const got = widened(out[static_cast<std::size_t>(head * channels + i)]);
      CHECK(std::abs(got - exact.out[static_cast<std::size_t>(i)]) < 0.02);
    }
  }
}

TEST_CASE("scores far below zero are as good as others") {
  for (index_t const group : {1, 4, 8, 16}) check_low_scores<__nv_bfloat16>(group);
  check_low_scores<float>(2);
}

TEST_CASE("a lane of 100,000 slots is taken by sixteen blocks, with the weights of four heads") {
  check_step<__nv_bfloat16, 128>(h2o{.heavy = 10, .recent = 10}, {1, 1, 4, 100'000, 1}, 77);
}

TEST_CASE("a row's bits do not depend on the batch around it") {
  using T = __nv_bfloat16;
  constexpr int channels = 128;
  index_t rows_in_batch = 0;
  SUBCASE("few: the blocks of a cluster share a lane, as they do for a row alone") {
    rows_in_batch = 7;
  }
  SUBCASE("many: a block has a lane whole") {
    rows_in_batch = 140;
  }
  attention_shape const many{rows_in_batch, 2, 4, 1300, 1};
  attention_case<T, channels> batch(many, 5);
  h2o const policy{.heavy = 600, .recent = 100};
  std::mt19937_64 engine(9);
  gpu::device_ledger<h2o> books(policy, batch.cache, scope::kv_head);
  std::vector<row_snapshot> rows;
  for (index_t row = 0; row < many.rows; ++row) {
    rows.push_back(
        random_books(books.view(), 150 * (row % 7) + 3, 150 * (row % 7) + 40, 1000, engine));
    books.restore(nullptr, row, rows.back());
  }
  auto args = batch.args();
  gpu::attend_async<channels>(nullptr, args, books.view(), policy);
  auto const out = batch.out.to_host(nullptr);
  for (index_t row = 0; row < many.rows; row += many.rows / 7) {
    gpu::device_ledger<h2o> alone(
        policy, {1, 1, many.kv_heads, many.slots, channels}, scope::kv_head);
    alone.restore(nullptr, 0, rows[static_cast<std::size_t>(row)]);
    attention_case<T, channels> single({1, 2, 4, 1300, 1}, 6);
    auto const lane_cells = static_cast<std::size_t>(many.kv_heads * many.slots) * channels;
    auto const part = [&](std::vector<T> const& all, std::size_t size) {
      return std::span<T const>(all).subspan(static_cast<std::size_t>(row) * size, size);
    };
    single.keys_on_device.copy_from_async(part(batch.keys, lane_cells), nullptr);
    single.values_on_device.copy_from_async(part(batch.values, lane_cells), nullptr);
    single.q_on_device.copy_from_async(part(batch.q, 8 * channels), nullptr);
    single.k_on_device.copy_from_async(part(batch.k, 2 * channels), nullptr);
    single.v_on_device.copy_from_async(part(batch.v, 2 * channels), nullptr);
    gpu::attend_async<channels>(nullptr, single.args(), alone.view(), policy);
    auto const own = single.out.to_host(nullptr);
    CHECK(std::memcmp(own.data(),
                      out.data() + static_cast<std::size_t>(row) * own.size(),
                      own.size() * sizeof(T)) == 0);
    CHECK(alone.snapshot(nullptr, 0).slot_states == books.snapshot(nullptr, row).slot_states);
    CHECK(alone.kept(nullptr, 1) == books.kept(nullptr, row * 2 + 1));
  }
}

TEST_CASE("few lanes that are cut finer are as exact") {
  for (index_t const slots : {40, 200, 257, 300, 700, 1024, 3000}) {
    attention_shape shape{2, 1, 4, slots, 1};
    shape.cut_for_lanes = 2;
    auto const seed = 400U + static_cast<unsigned>(slots);
    h2o const policy{.heavy = 10, .recent = 20};
    check_step<__nv_bfloat16, 128>(policy, shape, seed);
    shape.group = 8;
    shape.max_new = 3;
    check_step<__nv_bfloat16, 128>(policy, shape, seed + 1);
    check_step<float, 64>(policy, shape, seed + 2);
  }
  for (index_t const slots : {200, 1024, 2000, 4096, 9000, 20000}) {
    attention_shape sixteen{slots < 9000 ? 2 : 1, 1, 16, slots, 1};
    sixteen.cut_for_lanes = sixteen.rows;
    check_step<__nv_bfloat16, 128>(
        h2o{.heavy = 10, .recent = 20}, sixteen, 440U + static_cast<unsigned>(slots));
  }
  // up to 64 blocks a lane, also of more lanes than they are cut for
  for (index_t const lanes : {1, 3, 4, 5}) {
    for (index_t const slots : {5000, 17000}) {
      attention_shape thin{lanes, 1, 4, slots, 1};
      thin.cut_for_lanes = std::min(lanes, 4);
      auto const seed = 460U + static_cast<unsigned>(lanes);
      check_step<__nv_bfloat16, 128>(h2o{.heavy = 10, .recent = 20}, thin, seed);
      thin.max_new = 4;
      check_step<__nv_bfloat16, 128>(h2o{.heavy = 10, .recent = 20}, thin, seed);
    }
  }
  // two blocks share a lane: each has two chunks that would fit into one
  attention_shape several{40, 2, 4, 300, 1};
  several.cut_for_lanes = 32;
  check_step<__nv_bfloat16, 128>(h2o{.heavy = 10, .recent = 20}, several, 430);
}

TEST_CASE("blocks that meet in device memory put out the bits of a cluster") {
  constexpr int channels = 256;  // a block fills a multiprocessor
  attention_shape shape;
  SUBCASE("sixteen; groups take a second lane each") {
    shape = {10, 1, 2, 9000, 1};
  }
  SUBCASE("four, with two chunks each; groups take a second lane each") {
    shape = {20, 2, 2, 3000, 1};
  }
  SUBCASE("thirty-two; in a cluster sixteen, with two chunks each") {
    shape = {2, 1, 2, 9000, 1};
    shape.cut_for_lanes = 2;
  }
  attention_case<__nv_bfloat16, channels> there(shape, 51), in_cluster(shape, 51);
  h2o const policy{.heavy = shape.slots - 2000, .recent = 500};
  gpu::device_ledger<h2o> meeting(policy, there.cache, scope::kv_head);
  gpu::device_ledger<h2o> clustered(policy, there.cache, scope::kv_head);
  REQUIRE(meeting.view().exchange != nullptr);
  std::mt19937_64 engine(52);
  for (index_t row = 0; row < shape.rows; ++row) {
    index_t const tokens =
        row % 3 == 0 ? 60 : shape.slots - 2000 + row;  // in some lanes most blocks have nothing
    row_snapshot const before = random_books(meeting.view(), tokens, tokens + 100, tokens, engine);
    meeting.restore(nullptr, row, before);
    clustered.restore(nullptr, row, before);
  }
  auto view = clustered.view();
  view.exchange = nullptr;
  gpu::attend_async<channels>(nullptr, there.args(), meeting.view(), policy);
  gpu::attend_async<channels>(nullptr, in_cluster.args(), view, policy);
  auto const out = there.out.to_host(nullptr);
  auto const expected = in_cluster.out.to_host(nullptr);
  CHECK(std::memcmp(out.data(), expected.data(), out.size() * sizeof(out[0])) == 0);
  CHECK(there.lse.to_host(nullptr) == in_cluster.lse.to_host(nullptr));
  for (index_t row = 0; row < shape.rows; ++row) {
    CHECK(meeting.snapshot(nullptr, row).slot_states ==
          clustered.snapshot(nullptr, row).slot_states);
    CHECK(meeting.kept(nullptr, row) == clustered.kept(nullptr, row));
  }
}

TEST_CASE("what lies in free slots cannot matter, be it NaN") {
  using T = __nv_bfloat16;
  attention_shape const shape{2, 1, 2, 100, 1};
  attention_case<T, 64> c(shape, 3);
  h2o const policy{.heavy = 50, .recent = 10};
  std::mt19937_64 engine(4);
  gpu::device_ledger<h2o> books(policy, c.cache, scope::kv_head);
  auto const saved = random_books(books.view(), 40, 90, 90, engine);
  auto const run = [&] {
    for (index_t row = 0; row < 2; ++row) books.restore(nullptr, row, saved);
    gpu::attend_async<64>(nullptr, c.args(), books.view(), policy);
    return c.out.to_host(nullptr);
  };
  auto const before = run();
  auto poisoned = c.keys;
  auto poisoned_values = c.values;
  for (std::size_t cell = 0; cell < poisoned.size(); ++cell) {
    if (saved.positions[cell / 64 % 100] != no_position) continue;
    poisoned[cell] = poisoned_values[cell] = rounded<T>(std::numeric_limits<float>::quiet_NaN());
  }
  c.keys_on_device.copy_from_async(poisoned, nullptr);
  c.values_on_device.copy_from_async(poisoned_values, nullptr);
  auto const after = run();
  CHECK(std::memcmp(before.data(), after.data(), before.size() * sizeof(T)) == 0);
}

/// What the books say of all rows.
std::vector<row_snapshot> snapshots_of(gpu::device_ledger<h2o>& books, cudaStream_t stream) {
  std::vector<row_snapshot> rows;
  for (index_t row = 0; row < books.view().row_count; ++row) {
    rows.push_back(books.snapshot(stream, row));
  }
  return rows;
}
void check_same(std::vector<row_snapshot> const& rows, std::vector<row_snapshot> const& others) {
  REQUIRE(rows.size() == others.size());
  for (std::size_t row = 0; row < rows.size(); ++row) {
    CHECK(rows[row].next == others[row].next);
    CHECK(rows[row].positions == others[row].positions);
    CHECK(rows[row].slot_states == others[row].slot_states);
  }
}

/// Lanes that fill up within 20 steps, a row after the other.
void nearly_fill(gpu::device_ledger<h2o>& books, unsigned seed) {
  std::mt19937_64 engine(seed);
  index_t const slots = books.view().slots;
  for (index_t row = 0; row < books.view().row_count; ++row) {
    index_t const tokens = slots - 30 + row % 20;
    books.restore(nullptr, row, random_books(books.view(), tokens, slots + 50, slots - 10, engine));
  }
}

TEST_CASE("a step captured into a graph replays like one that is launched each time") {
  using T = __nv_bfloat16;
  attention_shape const shape{5, 2, 4, 65, 1};
  h2o const policy{.heavy = 40, .recent = 24};
  auto const run = [&](bool captured) {
    attention_case<T, 64> c(shape, 11);
    gpu::device_ledger<h2o> books(policy, c.cache, scope::kv_head);
    cudaStream_t stream = nullptr;
    gpu::check(cudaStreamCreate(&stream));
    for (index_t row = 0; row < shape.rows; ++row) books.open_async(stream, row);
    auto const step = [&] {
      gpu::attend_async<64>(stream, c.args(), books.view(), policy);
      gpu::advance_async(stream, books.view());
    };
    cudaGraphExec_t replay = nullptr;
    if (captured) {
      cudaGraph_t graph = nullptr;
      gpu::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      step();
      gpu::check(cudaStreamEndCapture(stream, &graph));
      gpu::check(cudaGraphInstantiate(&replay, graph, 0));
      gpu::check(cudaGraphDestroy(graph));
    }
    for (int i = 0; i < 300; ++i) {
      // sequences come and go without a new capture
      if (i == 100) books.close_async(stream, 2);
      if (i == 150) books.open_async(stream, 2, 7);
      if (i == 200) books.fork_async(stream, 0, 3);
      if (captured) {
        gpu::check(cudaGraphLaunch(replay, stream));
      } else {
        step();
      }
    }
    auto rows = snapshots_of(books, stream);
    CHECK(books.tokens_without_room(stream) == 0);
    if (replay != nullptr) gpu::check(cudaGraphExecDestroy(replay));
    gpu::check(cudaStreamDestroy(stream));
    return rows;
  };
  auto const eager = run(false);
  check_same(eager, run(true));
  for (std::size_t row = 0; row < eager.size(); ++row) {
    CHECK(eager[row].next == (row == 2 ? 150 : 300));
    auto const kept = eager[row].positions;
    CHECK(std::count_if(kept.begin(), kept.end(), [](position_t p) { return p >= 0; }) == 2 * 64);
  }
}

TEST_CASE("attention that begins before queries and keys are turned puts out the same") {
  using T = __nv_bfloat16;
  constexpr int channels = 128;
  attention_shape shape;
  SUBCASE("many short lanes") {
    shape = {70, 4, 2, 150, 1};
  }
  SUBCASE("two long ones, whose blocks meet in device memory") {
    shape = {2, 1, 8, 9000, 1};
    shape.cut_for_lanes = 2;
  }
  index_t constexpr layers = 6;
  index_t const heads = shape.kv_heads * shape.group;
  h2o const policy{.heavy = shape.slots - 50, .recent = 40};
  gpu::device_rope const rope(channels, 10'000.0, rope_pairs::halves);
  auto const run = [&](bool overlaps) {
    attention_case<T, channels> c(shape, 61);
    gpu::device_ledger<h2o> books(
        policy, {shape.rows, layers, shape.kv_heads, shape.slots, channels}, scope::kv_head);
    nearly_fill(books, 62);
    gpu::device_buffer<T> outs(layers * c.out.size());
    for (int step = 0; step < 12; ++step) {
      for (index_t layer = 0; layer < layers; ++layer) {
        auto args = c.args();
        args.layer = layer;  // all in the same store, which rotation does not write to
        args.overlaps = overlaps;
        args.out.data = outs.data() + static_cast<std::size_t>(layer) * c.out.size();
        gpu::rotate_async(
            nullptr,
            rope.view(),
            gpu::step_positions(books.view()),
            token_view<T>{c.q_on_device.data(), shape.rows, heads, channels},
            token_view<T>{c.k_on_device.data(), shape.rows, shape.kv_heads, channels});
        gpu::attend_async<channels>(nullptr, args, books.view(), policy);
      }
      gpu::advance_async(nullptr, books.view());
    }
    return std::pair{outs.to_host(nullptr), snapshots_of(books, nullptr)};
  };
  auto const [out, rows] = run(false);
  auto const [early_out, early_rows] = run(true);
  CHECK(std::memcmp(out.data(), early_out.data(), out.size() * sizeof(T)) == 0);
  check_same(rows, early_rows);
}

TEST_CASE("attention that begins before the decision on another layer puts out the same") {
  using T = __nv_bfloat16;
  constexpr int channels = 128;
  attention_shape shape;
  index_t layers = 2;  // as few as may be: only the end of a step lies between those of one layer
  SUBCASE("many short lanes") {
    shape = {70, 4, 2, 150, 1};
  }
  SUBCASE("few, so that all of a layer's blocks leave room for those of the next") {
    shape = {3, 4, 2, 150, 1};
    layers = 5;
  }
  SUBCASE("long ones, whose decisions several blocks share") {
    shape = {2, 4, 4, 3000, 1};
    layers = 3;
  }
  h2o const policy{.heavy = shape.slots - 50, .recent = 40};
  auto const run = [&](bool overlaps) {
    std::vector<attention_case<T, channels>> cases;  // [layer]
    for (index_t layer = 0; layer < layers; ++layer) {
      cases.emplace_back(shape, 63 + static_cast<std::uint64_t>(layer));
    }
    gpu::device_ledger<h2o> books(
        policy, {shape.rows, layers, shape.kv_heads, shape.slots, channels}, scope::layer);
    nearly_fill(books, 70);
    gpu::device_buffer<float> weights(static_cast<std::size_t>(shape.rows * shape.kv_heads) *
                                      static_cast<std::size_t>(books.view().stride));
    for (int step = 0; step < 24; ++step) {
      for (index_t layer = 0; layer < layers; ++layer) {
        auto args = cases[static_cast<std::size_t>(layer)].args();
        args.layer = layer;
        args.weights = weights.data();
        args.overlaps = overlaps;
        gpu::attend_async<channels>(nullptr, args, books.view(), policy);
        gpu::decide_async(nullptr,
                          books.view(),
                          policy,
                          layer,
                          {.weights = weights.data(), .overlaps = overlaps});
      }
      gpu::advance_async(nullptr, books.view());
    }
    std::vector<std::vector<T>> outs;
    for (auto const& of_layer : cases) outs.push_back(of_layer.out.to_host(nullptr));
    return std::pair{outs, snapshots_of(books, nullptr)};
  };
  auto const [outs, rows] = run(false);
  auto const [early_outs, early_rows] = run(true);
  for (std::size_t layer = 0; layer < outs.size(); ++layer) {
    CHECK(std::memcmp(
              outs[layer].data(), early_outs[layer].data(), outs[layer].size() * sizeof(T)) == 0);
  }
  for (row_snapshot const& row : rows) CHECK(row.next == shape.slots + 74);
  check_same(rows, early_rows);
}

TEST_CASE("blocks that meet in device memory do so beside those of another stream, in graphs") {
  using T = __nv_bfloat16;
  constexpr int channels = 128;
  attention_shape shape{2, 1, 4, 9000, 1};
  shape.cut_for_lanes = 1;  // 64 blocks per lane: those of one launch take nearly all of the chip
  h2o const policy{.heavy = 8000, .recent = 900};
  constexpr index_t layers = 3, steps = 8;
  struct side {
    std::vector<attention_case<T, channels>> cases;  // [layer]
    gpu::device_ledger<h2o> books;
    cudaStream_t stream = nullptr;
    cudaGraphExec_t step = nullptr;
  };
  auto const run = [&](bool beside) {
    int lowest = 0, highest = 0;
    gpu::check(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    std::vector<side> sides;
    for (unsigned n = 0; n < 2; ++n) {
      sides.push_back(
          {.cases = {},
           .books = gpu::device_ledger<h2o>(
               policy, {shape.rows, layers, 1, shape.slots, channels}, scope::kv_head)});
      side& one = sides.back();
      for (unsigned layer = 0; layer < layers; ++layer) {
        one.cases.emplace_back(shape, 71 + 10 * layer + n);
      }
      std::mt19937_64 engine(73 + n);
      for (index_t row = 0; row < shape.rows; ++row) {
        one.books.restore(nullptr, row, random_books(one.books.view(), 8890, 9100, 8900, engine));
      }
      gpu::check(cudaStreamCreateWithPriority(
          &one.stream, cudaStreamNonBlocking, n == 0 ? lowest : highest));
      gpu::check(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
      for (index_t layer = 0; layer < layers; ++layer) {
        auto args = one.cases[static_cast<std::size_t>(layer)].args();
        args.layer = layer;
        args.overlaps = layer > 0;
        gpu::attend_async<channels>(one.stream, args, one.books.view(), policy);
      }
      gpu::advance_async(one.stream, one.books.view());
      cudaGraph_t graph = nullptr;
      gpu::check(cudaStreamEndCapture(one.stream, &graph));
      gpu::check(cudaGraphInstantiate(&one.step, graph, 0));
      gpu::check(cudaGraphDestroy(graph));
    }
    gpu::check(cudaDeviceSynchronize());
    for (index_t step = 0; step < steps; ++step) {
      for (side& one : sides) {
        gpu::check(cudaGraphLaunch(one.step, one.stream));
        if (!beside) gpu::check(cudaStreamSynchronize(one.stream));
      }
    }
    gpu::check(cudaDeviceSynchronize());
    std::vector<row_snapshot> rows;
    for (side& one : sides) {
      for (row_snapshot& row : snapshots_of(one.books, nullptr)) rows.push_back(std::move(row));
      gpu::check(cudaGraphExecDestroy(one.step));
      gpu::check(cudaStreamDestroy(one.stream));
    }
    return rows;
  };
  auto const alone = run(false);
  auto const beside = run(true);
  for (row_snapshot const& row : alone) CHECK(row.next == 9100 + steps);
  check_same(alone, beside);
}

TEST_CASE("shapes that do not fit together are refused by name") {
  using T = __nv_bfloat16;
  attention_case<T, 64> c({2, 2, 1, 40, 1}, 1);
  sliding_window const policy{.size = 20};
  gpu::device_ledger<sliding_window> books(policy, c.cache, scope::kv_head);
  auto args = c.args();
  CHECK_THROWS_WITH_AS(gpu::attend_async<128>(nullptr, args, books.view(), policy),
                       doctest::Contains("template argument says 128"),
                       std::logic_error);
  args.q.heads = 3;
  CHECK_THROWS_WITH_AS(gpu::attend_async<64>(nullptr, args, books.view(), policy),
                       doctest::Contains("3 query heads"),
                       std::logic_error);
  CHECK_THROWS_WITH_AS(
      gpu::device_ledger<sliding_window>({.size = 40}, {1, 1, 1, 40, 64}, scope::kv_head),
      doctest::Contains("budget = 40"),
      std::invalid_argument);
}

TEST_CASE("a token that finds no slot is counted") {
  using T = __nv_bfloat16;
  attention_case<T, 64> c({1, 1, 1, 4, 1}, 1);
  sliding_window const policy{.size = 3};
  gpu::device_ledger<sliding_window> books(policy, c.cache, scope::kv_head);
  books.open_async(nullptr, 0);
  auto saved = books.snapshot(nullptr, 0);
  saved.budgets = {unbounded};
  books.restore(nullptr, 0, saved);
  for (int i = 0; i < 3; ++i) {
    gpu::attend_async<64>(nullptr, c.args(), books.view(), policy);
    gpu::advance_async(nullptr, books.view());
    CHECK(books.tokens_without_room(nullptr) == 0);
  }
  gpu::attend_async<64>(nullptr, c.args(), books.view(), policy);
  CHECK(books.tokens_without_room(nullptr) == 1);
}

}  // namespace
}  // namespace adore::testing
