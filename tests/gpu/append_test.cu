// SPDX-License-Identifier: Apache-2.0
// New K and V find their slots; keys that a policy scores leave their norm.
#include "adore/gpu/append.cuh"
#include "adore/gpu/device_store.cuh"
#include "adore/gpu/paged_view.cuh"
#include "adore/policies/h2o.hpp"
#include "support/books_on_device.cuh"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {
namespace {

template <class T>
bool same_bytes(T const* a, T const* b, index_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

/// Rows of different lengths and numbers of new tokens; the last row is empty.
template <class P>
void fill(books_on_device<P>& books, std::mt19937& random) {
  auto const& view = books.view();
  for (index_t row = 0; row < view.row_count; ++row) {
    bool const last = row + 1 == view.row_count;
    books.row(row) = {.next = 7 + 5 * row, .count = last ? 0 : row % view.max_new + 1, .seed = 0};
  }
  for (index_t lane = 0; lane < books.lane_count(); ++lane) {
    books.fill(lane, 3, view.slots - 3 - view.max_new, random);
  }
}

template <class T>
void check_append(index_t kv_heads, index_t channels, scope reach) {
  CAPTURE(kv_heads);
  CAPTURE(channels);
  CAPTURE(word_of(reach));
  test_stream const stream;
  std::mt19937 random(7);
  constexpr index_t rows = 4, layers = 2, slots = 11, max_new = 3, layer = 1;
  books_on_device<h2o> books({rows, layers, kv_heads, slots, max_new, reach});
  fill(books, random);
  books.new_slot(books.view().lane(0, layer, 0), books.row(0).next) = -1;  // had no room
  books.to_device(stream);
  auto const cells = static_cast<std::size_t>(rows * kv_heads * slots * channels);
  auto const news = static_cast<std::size_t>(rows * max_new * kv_heads * channels);
  device_tensor<T> keys(random_exact<T>(cells, random)), values(random_exact<T>(cells, random));
  device_tensor<T> k(random_exact<T>(news, random)), v(random_exact<T>(news, random));
  auto expected_keys = keys.host, expected_values = values.host;
  auto const to = [&](std::vector<T>& memory) {
    return kv_view<T>(memory.data(), rows, kv_heads, slots, channels);
  };
  for (index_t row = 0; row < rows; ++row) {
    for (index_t j = 0; j < books.row(row).count; ++j) {
      for (index_t head = 0; head < kv_heads; ++head) {
        index_t const slot =
            books.new_slot(books.view().lane(row, layer, head), books.row(row).next + j);
        if (slot < 0) continue;
        auto const from = ((row * max_new + j) * kv_heads + head) * channels;
        std::copy_n(k.host.begin() + from, channels, to(expected_keys)(row, head, slot));
        std::copy_n(v.host.begin() + from, channels, to(expected_values)(row, head, slot));
      }
    }
  }
  gpu::append_async(stream,
                    books.view(),
                    layer,
                    kv_view<T>(keys.data(), rows, kv_heads, slots, channels),
                    kv_view<T>(values.data(), rows, kv_heads, slots, channels),
                    token_view<T>(k.data(), rows * max_new, kv_heads, channels),
                    token_view<T>(v.data(), rows * max_new, kv_heads, channels));
  keys.fetch(stream);
  values.fetch(stream);
  CHECK(same_bytes(keys.host.data(), expected_keys.data(), static_cast<index_t>(cells)));
  CHECK(same_bytes(values.host.data(), expected_values.data(), static_cast<index_t>(cells)));
}

}  // namespace

TEST_CASE("each new token's K and V are copied to the slot reserved for it, nothing else changes") {
  check_append<float>(3, 4, scope::kv_head);
  check_append<__half>(9, 96, scope::layer);
  check_append<__nv_bfloat16>(8, 128, scope::model);
  check_append<__nv_bfloat16>(17, 256, scope::kv_head);
}

TEST_CASE("K and V are appended to pages") {
  test_stream const stream;
  std::mt19937 random(3);
  constexpr index_t kv_heads = 2, slots = 8, channels = 64, page = 4;
  books_on_device<h2o> books({1, 1, kv_heads, slots, 1, scope::layer});
  books.row(0) = {.next = 9, .count = 1, .seed = 0};
  books.put(0, 5, 9);
  books.to_device(stream);
  std::vector<__half> const zeros(3 * page * kv_heads * channels, __half(0.0F));
  device_tensor<__half> keys(zeros), values(zeros);
  device_tensor<__half> k(random_exact<__half>(kv_heads * channels, random));
  device_tensor<__half> v(random_exact<__half>(kv_heads * channels, random));
  device_tensor<index_t> indices({2, 1}), indptr({0, 2}), last({4});
  auto const pages = [&](__half* data) {
    return gpu::paged_view<__half>(data,
                                   gpu::page_layout::nhd,
                                   1,
                                   kv_heads,
                                   slots,
                                   channels,
                                   page,
                                   indices.data(),
                                   indptr.data(),
                                   last.data());
  };
  gpu::append_async(stream,
                    books.view(),
                    0,
                    pages(keys.data()),
                    pages(values.data()),
                    token_view<__half>(k.data(), 1, kv_heads, channels),
                    token_view<__half>(v.data(), 1, kv_heads, channels));
  keys.fetch(stream);
  values.fetch(stream);
  // slot 5 is place 1 of page 1; its heads lie side by side
  auto const at = (1 * page + 1) * kv_heads * channels;
  CHECK(same_bytes(keys.host.data() + at, k.host.data(), kv_heads * channels));
  CHECK(same_bytes(values.host.data() + at, v.host.data(), kv_heads * channels));
  CHECK(same_bytes(keys.host.data(), zeros.data(), at));
}

TEST_CASE("append refuses shapes that do not fit together") {
  test_stream const stream;
  books_on_device<h2o> books({2, 1, 2, 8, 1, scope::kv_head});
  gpu::device_store<float> store({2, 1, 2, 8, 64}), small({2, 1, 2, 4, 64});
  gpu::device_buffer<float> tokens(4 * 2 * 64);
  books.to_device(stream);
  tokens.fill_async(0, stream);
  auto const append = [&](auto& to, index_t layer, index_t n, index_t heads, index_t channels) {
    token_view<float> const t(tokens.data(), n, heads, channels);
    gpu::append_async(stream, books.view(), layer, to.keys(0), to.values(0), t, t);
  };
  CHECK_THROWS_AS(append(store, 1, 2, 2, 64), std::invalid_argument);
  CHECK_NOTHROW(append(store, 0, 3, 2, 64));
  CHECK_THROWS_WITH_AS(append(store, 0, 1, 2, 64),
                       doctest::Contains("k have room for 1 tokens: must be 2"),
                       std::logic_error);
  CHECK_THROWS_AS(append(store, 0, 2, 1, 64), std::logic_error);
  CHECK_THROWS_AS(append(store, 0, 2, 2, 32), std::logic_error);
  CHECK_THROWS_AS(append(small, 0, 2, 2, 64), std::logic_error);
}

}  // namespace adore::testing
