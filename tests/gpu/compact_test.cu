// SPDX-License-Identifier: Apache-2.0
// Lanes moved together on the device: K, V and the books, by a gather and by the paper's product.
#include "adore/eviction/compact.hpp"
#include "adore/gpu/compact.cuh"
#include "adore/gpu/compact_ledger.cuh"
#include "adore/gpu/paged_view.cuh"
#include "adore/policies/h2o.hpp"
#include "adore/policies/sliding_window.hpp"
#include "support/books_on_device.cuh"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::testing {
namespace {

/// Slots of a lane's kept tokens, by position.
template <class P>
std::vector<index_t> kept_slots(books_on_device<P>& books, index_t lane) {
  std::vector<index_t> slots;
  for (index_t s = 0; s < books.view().slots; ++s) {
    position_t const p = books.position(lane, s);
    if (p >= 0 && p < books.row(books.row_of(lane)).next) slots.push_back(s);
  }
  std::sort(slots.begin(), slots.end(), [&](index_t a, index_t b) {
    return books.position(lane, a) < books.position(lane, b);
  });
  return slots;
}

struct workspaces {
  gpu::device_buffer<std::byte> order, data, ledger;
  template <class P, class Keys>
  workspaces(gpu::ledger_view<P> const& view, Keys const& keys)
      : order(gpu::compaction_order_bytes(view)),
        data(gpu::compact_workspace_bytes(view, keys)),
        ledger(gpu::compact_ledger_workspace_bytes(view)) {}
};

/// Rows 0.. of different lengths; the last row, if there are several, holds nothing.
template <class P>
void fill(books_on_device<P>& books, std::mt19937& random) {
  auto const& view = books.view();
  for (index_t lane = 0; lane < books.lane_count(); ++lane) {
    index_t const row = books.row_of(lane);
    if (row > 0 && row + 1 == view.row_count) continue;
    index_t const most = view.slots - view.max_new;
    books.row(row) = {.next = most + 50 + row, .count = 1, .seed = 0};
    index_t const kept =
        lane == 0 ? most : static_cast<index_t>(random() % static_cast<unsigned>(most + 1));
    books.fill(lane, kept, most - kept > 5 ? 5 : most - kept, random);
    books.lane(lane).budget = most;
  }
}

/// All layers, then the books; K and V as `adore::compact` moves them.
template <class T, class P>
void check_compact(compaction kind, books_shape const& shape, index_t channels) {
  CAPTURE(static_cast<int>(kind));
  CAPTURE(shape.slots);
  CAPTURE(channels);
  test_stream const stream;
  std::mt19937 random(12);
  books_on_device<P> books(shape);
  fill(books, random);
  if constexpr (requires { books.states[0].mass; }) {
    for (std::size_t i = 0; i < books.states.size(); ++i)
      books.states[i].mass = static_cast<float>(i);
  }
  books.to_device(stream);
  auto const cells = static_cast<std::size_t>(shape.rows * shape.kv_heads * shape.slots) *
                     static_cast<std::size_t>(channels);
  auto const view_of = [&](T* data) {
    return kv_view<T>(data, shape.rows, shape.kv_heads, shape.slots, channels);
  };
  workspaces memory(books.view(), view_of(nullptr));
  auto const order = gpu::order_lanes_async(stream, books.view(), memory.order.data());
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    device_tensor<T> keys(random_exact<T>(cells, random)), values(random_exact<T>(cells, random));
    // what lies in free and reserved slots is no number
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        auto const kept = kept_slots(books, books.view().lane(row, layer, head));
        for (index_t s = 0; s < shape.slots; ++s) {
          if (std::find(kept.begin(), kept.end(), s) != kept.end()) continue;
          std::fill_n(view_of(keys.host.data())(row, head, s),
                      channels,
                      static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
        }
      }
    }
    keys.device.copy_from_async(keys.host, stream);
    auto expected_keys = keys.host, expected_values = values.host;
    gpu::compact_async(stream,
                       kind,
                       books.view(),
                       order,
                       layer,
                       view_of(keys.data()),
                       view_of(values.data()),
                       memory.data.data());
    keys.fetch(stream);
    values.fetch(stream);
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        auto const kept = kept_slots(books, books.view().lane(row, layer, head));
        auto const gather = kind == compaction::slot_reuse ? kind : compaction::gather;
        compact(gather, view_of(expected_keys.data()), row, head, kept);
        compact(gather, view_of(expected_values.data()), row, head, kept);
      }
    }
    CHECK(std::memcmp(keys.host.data(), expected_keys.data(), cells * sizeof(T)) == 0);
    CHECK(std::memcmp(values.host.data(), expected_values.data(), cells * sizeof(T)) == 0);
  }
  if (kind == compaction::slot_reuse) return;

  books_on_device<P> before = [&] {
    books_on_device<P> copy(shape);
    copy.positions = books.positions;
    copy.states = books.states;
    copy.lanes = books.lanes;
    copy.new_slots = books.new_slots;
    copy.rows = books.rows;
    return copy;
  }();
  gpu::compact_ledger_async(stream, books.view(), order, memory.ledger.data());
  books.from_device(stream);
  for (index_t lane = 0; lane < books.lane_count(); ++lane) {
    CAPTURE(lane);
    index_t const row = books.row_of(lane);
    position_t const next = before.row(row).next;
    auto const kept = kept_slots(before, lane);
    auto const count = static_cast<index_t>(kept.size());
    bool const holds = before.lane(lane).extent > 0;
    CHECK(books.lane(lane).occupied == count);
    CHECK(books.lane(lane).budget == before.lane(lane).budget);
    CHECK(books.lane(lane).extent == (holds ? count + shape.max_new : 0));
    for (index_t s = 0; s < shape.slots; ++s) {
      position_t const expected = s < count
                                      ? before.position(lane, kept[static_cast<std::size_t>(s)])
                                  : holds && s < count + shape.max_new ? next + s - count
                                                                       : no_position;
      CHECK(books.position(lane, s) == expected);
      if constexpr (requires { books.states[0].mass; }) {
        if (s < count) {
          CHECK(books.state(lane, s).mass ==
                before.state(lane, kept[static_cast<std::size_t>(s)]).mass);
        }
      }
    }
    for (index_t j = 0; j < shape.max_new; ++j) {
      CHECK(books.new_slot(lane, next + j) == (holds ? count + j : -1));
    }
  }
}

}  // namespace

TEST_CASE("a gather and a product move kept tokens together, in ascending position") {
  for (compaction const kind : {compaction::gather, compaction::matmul}) {
    check_compact<__nv_bfloat16, h2o>(kind, {3, 2, 3, 70, 2, scope::kv_head}, 128);
    check_compact<__half, h2o>(kind, {2, 2, 2, 33, 1, scope::layer}, 96);
    check_compact<float, sliding_window>(kind, {2, 3, 2, 17, 3, scope::model}, 64);
    check_compact<__half, sliding_window>(kind, {1, 1, 1, 200, 1, scope::kv_head}, 256);
  }
}

TEST_CASE("slots that are reused move nothing") {
  check_compact<float, h2o>(compaction::slot_reuse, {2, 1, 2, 20, 1, scope::kv_head}, 64);
}

TEST_CASE("lanes longer than shared memory are compacted through the workspace") {
  CHECK(gpu::detail::plan_slices(12800, 8).in_shared);
  CHECK_FALSE(gpu::detail::plan_slices(12816, 8).in_shared);
  check_compact<__half, h2o>(compaction::gather, {1, 1, 1, 3000, 1, scope::kv_head}, 64);
  check_compact<__half, h2o>(compaction::gather, {1, 1, 2, 17000, 2, scope::kv_head}, 64);
  check_compact<float, sliding_window>(compaction::gather, {1, 1, 1, 14000, 1, scope::layer}, 12);
}

TEST_CASE("a workspace that is needed and missing is refused, with its bytes") {
  books_on_device<h2o> books({1, 1, 1, 8, 1});
  std::string const bytes = std::to_string(gpu::compaction_order_bytes(books.view()));
  CHECK_THROWS_WITH_AS(gpu::order_lanes_async(nullptr, books.view(), nullptr),
                       doctest::Contains(bytes.c_str()),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(gpu::compact_ledger_async(nullptr, books.view(), {}, nullptr),
                       doctest::Contains("workspace is null"),
                       std::invalid_argument);
  auto with_guests = books.view();
  with_guests.guests = 2;
  CHECK_THROWS_AS(gpu::order_lanes_async(nullptr, with_guests, nullptr), std::logic_error);
}

TEST_CASE("slices cover a row and fit in a block") {
  for (index_t const slots : {16, 208, 1024, 4096, 8192, 12800, 131072}) {
    for (index_t const row_chunks : {1, 3, 8, 12, 16, 32, 64}) {
      auto const plan = gpu::detail::plan_slices(slots, row_chunks);
      CHECK((plan.chunks & (plan.chunks - 1)) == 0);
      CHECK(plan.slices(row_chunks) * plan.chunks >= row_chunks);
      CHECK((plan.slices(row_chunks) - 1) * plan.chunks < row_chunks);
      if (plan.in_shared) CHECK(slots * plan.chunks * 16 <= 200 * 1024);
    }
  }
}

TEST_CASE("in a product, what is no number spreads over its channel") {
  test_stream const stream;
  books_on_device<h2o> books({1, 1, 1, 8, 1, scope::kv_head});
  books.row(0) = {.next = 4, .count = 1, .seed = 0};
  for (index_t i = 0; i < 3; ++i) books.put(0, 2 * i + 1, i);
  books.to_device(stream);
  std::vector<__half> data(8 * 64, __half(1.0F));
  data[3 * 64 + 5] = __half(std::numeric_limits<float>::infinity());  // of the token at position 1
  device_tensor<__half> keys(data), values(data);
  kv_view<__half> const k(keys.data(), 1, 1, 8, 64), v(values.data(), 1, 1, 8, 64);
  workspaces memory(books.view(), k);
  auto const order = gpu::order_lanes_async(stream, books.view(), memory.order.data());
  gpu::compact_async(stream, compaction::matmul, books.view(), order, 0, k, v);
  keys.fetch(stream);
  for (std::size_t place = 0; place < 3; ++place) {
    for (std::size_t c = 0; c < 64; ++c) {
      double const x = number(keys.host[place * 64 + c]);
      CHECK((c == 5 ? !(x == 1.0) : x == 1.0));
    }
  }
}

TEST_CASE("pages are compacted slot by slot") {
  test_stream const stream;
  std::mt19937 random(4);
  constexpr index_t slots = 12, channels = 64, page = 4;
  books_on_device<h2o> books({1, 1, 1, slots, 1, scope::kv_head});
  books.row(0) = {.next = 30, .count = 1, .seed = 0};
  books.fill(0, 6, 3, random);
  books.to_device(stream);
  auto const numbers = random_exact<__nv_bfloat16>(4 * page * channels, random);
  device_tensor<__nv_bfloat16> keys(numbers), values(numbers);
  std::vector<index_t> const table{3, 0, 2};
  device_tensor<index_t> indices(table), indptr({0, 3}), last({4});
  auto const pages = [&](__nv_bfloat16* data) {
    return gpu::paged_view<__nv_bfloat16>(data,
                                          gpu::page_layout::hnd,
                                          1,
                                          1,
                                          slots,
                                          channels,
                                          page,
                                          indices.data(),
                                          indptr.data(),
                                          last.data());
  };
  workspaces memory(books.view(), pages(keys.data()));
  auto const order = gpu::order_lanes_async(stream, books.view(), memory.order.data());
  gpu::compact_async(stream,
                     compaction::gather,
                     books.view(),
                     order,
                     0,
                     pages(keys.data()),
                     pages(values.data()),
                     memory.data.data());
  keys.fetch(stream);
  auto const row_of = [&](index_t slot) {
    return static_cast<std::size_t>(
        (table[static_cast<std::size_t>(slot / page)] * page + slot % page) * channels);
  };
  auto const kept = kept_slots(books, 0);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    CHECK(std::memcmp(&keys.host[row_of(static_cast<index_t>(i))],
                      &numbers[row_of(kept[i])],
                      channels * sizeof(__nv_bfloat16)) == 0);
  }
}

}  // namespace adore::testing
