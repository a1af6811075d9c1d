// SPDX-License-Identifier: Apache-2.0
// K/V in device memory: where layers, rows, heads and slots lie.
#include "adore/gpu/device_store.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/stores/store_concepts.hpp"
#include "support/device_tensor.cuh"

#include <cuda_bf16.h>

#include <doctest/doctest.h>

#include <set>
#include <type_traits>
#include <vector>

namespace adore::testing {

TEST_CASE("a device store gives every slot a row of its own, in the order of its shape") {
  test_stream const stream;
  kv_shape const shape{.sequences = 2, .layers = 3, .kv_heads = 2, .slots = 5, .channels = 8};
  gpu::device_store<__nv_bfloat16> store(shape);
  CHECK(store.shape() == shape);
  CHECK(store.capacity() == 5);
  CHECK(store.granule() == 1);
  CHECK(store.allocated_bytes() == 2 * 3 * 2 * 2 * 5 * 8 * sizeof(__nv_bfloat16));
  std::set<__nv_bfloat16*> starts;
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    auto const keys = store.keys(layer);
    auto const values = store.values(layer);
    gpu::check_rows(keys, "keys");
    gpu::check_rows(values, "values");
    for (index_t row = 0; row < shape.sequences; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        for (index_t slot = 0; slot < shape.slots; ++slot) {
          starts.insert(keys(row, head, slot));
          starts.insert(values(row, head, slot));
          CHECK(keys(row, head, slot) - store.keys(0).data ==
                (((layer * 2 + row) * 2 + head) * 5 + slot) * 8);
        }
      }
    }
  }
  CHECK(starts.size() == 2 * 3 * 2 * 2 * 5);
}

TEST_CASE("what is written through a store's view is there, and nowhere else") {
  test_stream const stream;
  gpu::device_store<float> store(
      {.sequences = 2, .layers = 2, .kv_heads = 1, .slots = 3, .channels = 4});
  for (index_t layer = 0; layer < 2; ++layer) {
    gpu::check(cudaMemsetAsync(store.keys(layer).data, 0, 2 * 3 * 4 * sizeof(float), stream));
  }
  std::vector<float> const row{1, 2, 3, 4};
  gpu::check(cudaMemcpyAsync(
      store.keys(1)(1, 0, 2), row.data(), 4 * sizeof(float), cudaMemcpyHostToDevice, stream));
  std::vector<float> all(2 * 2 * 3 * 4);
  gpu::check(cudaMemcpyAsync(
      all.data(), store.keys(0).data, all.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
  gpu::check(cudaStreamSynchronize(stream));
  std::vector<float> expected(44, 0.0F);
  expected.insert(expected.end(), row.begin(), row.end());
  CHECK(all == expected);
}

TEST_CASE("the host's cache refuses a store on the device") {
  CHECK_FALSE(kv_store<gpu::device_store<float>>);
  CHECK_FALSE(std::is_copy_constructible_v<gpu::device_store<float>>);
  CHECK(std::is_move_constructible_v<gpu::device_store<float>>);
}

}  // namespace adore::testing
