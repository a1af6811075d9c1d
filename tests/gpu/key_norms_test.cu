// SPDX-License-Identifier: Apache-2.0
// Squared norms of new keys.
#include "support/books_on_device.cuh"
#include "support/device_tensor.cuh"
#include <adore/gpu/key_norms.cuh>
#include <adore/policies/key_norm.hpp>

#include <doctest/doctest.h>

#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

TEST_CASE("the squared norms of new keys are measured, those of other tokens left alone") {
  test_stream const stream;
  std::mt19937 random(11);
  constexpr index_t rows = 3, kv_heads = 9, slots = 9, max_new = 2, channels = 96;
  books_on_device<key_norm> books({rows, 1, kv_heads, slots, max_new, scope::kv_head});
  for (index_t row = 0; row < rows; ++row) books.row(row) = {.next = 7, .count = row, .seed = 0};
  books.to_device(stream);
  auto const news = static_cast<std::size_t>(rows * max_new * kv_heads * channels);
  device_tensor<float> k(random_exact<float>(news, random));
  device_tensor<float> norms(std::vector<float>(rows * kv_heads * max_new, -1.0F));
  token_view<float const> const new_keys(k.data(), rows * max_new, kv_heads, channels);
  gpu::measure_keys_async(stream, books.view(), new_keys, norms.data());
  norms.fetch(stream);
  for (index_t row = 0; row < rows; ++row) {
    for (index_t head = 0; head < kv_heads; ++head) {
      for (index_t j = 0; j < max_new; ++j) {
        float expected = 0.0F;  // exact: multiples of 2^-12 far below 2^12
        auto const* const key = k.host.data() + ((row * max_new + j) * kv_heads + head) * channels;
        for (index_t c = 0; c < channels; ++c) expected += key[c] * key[c];
        if (j >= books.row(row).count) expected = -1.0F;  // no such token
        auto const at = static_cast<std::size_t>((row * kv_heads + head) * max_new + j);
        CHECK(norms.host[at] == expected);
      }
    }
  }
  CHECK_THROWS_AS(gpu::measure_keys_async(
                      stream,
                      books.view(),
                      token_view<float const>(k.data(), rows * max_new, kv_heads - 1, channels),
                      norms.data()),
                  std::logic_error);
  CHECK_THROWS_AS(gpu::measure_keys_async(stream, books.view(), new_keys, nullptr),
                  std::logic_error);
}

}  // namespace adore::testing
