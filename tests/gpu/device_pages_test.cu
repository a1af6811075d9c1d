// SPDX-License-Identifier: Apache-2.0
// K/V in pages of the device: where slots lie, tables that change under a captured graph, and
// tables that are refused.
#include "adore/gpu/device_pages.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/stores/store_concepts.hpp"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <stdexcept>
#include <type_traits>
#include <vector>

namespace adore::testing {
namespace {

constexpr kv_shape shape{.sequences = 2, .layers = 2, .kv_heads = 2, .slots = 7, .channels = 4};
constexpr index_t pages = 5, page_size = 3;

/// Writes the number of each slot in use into its first channel. Grid: (KV head, sequence).
__global__ void number_slots(gpu::paged_view<float> view) {
  auto const sequence = static_cast<index_t>(blockIdx.y);
  for (index_t slot = 0; slot < view.slots_of(sequence); ++slot) {
    *view(sequence, static_cast<index_t>(blockIdx.x), slot) =
        static_cast<float>(100 * sequence + slot);
  }
}

/// First channels of KV head 1 in all pages of a layer, [page, slot in page].
std::vector<float> read(gpu::paged_view<float> const& view, cudaStream_t stream) {
  std::vector<float> all(pages * page_size * 2 * 4), firsts;
  gpu::check(cudaMemcpyAsync(
      all.data(), view.data, all.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
  gpu::check(cudaStreamSynchronize(stream));
  for (index_t page = 0; page < pages; ++page) {
    for (index_t slot = 0; slot < page_size; ++slot) {
      firsts.push_back(all[static_cast<std::size_t>(page * view.page_stride + view.kv_head_stride +
                                                    slot * view.slot_stride)]);
    }
  }
  return firsts;
}

}  // namespace

TEST_CASE("layers of pages follow each other, K and V apart") {
  for (gpu::page_layout const layout : {gpu::page_layout::hnd, gpu::page_layout::nhd}) {
    gpu::device_pages<float> store(shape, pages, page_size, layout);
    CHECK(store.shape() == shape);
    CHECK(store.capacity() == 7);
    CHECK(store.granule() == page_size);
    CHECK(store.pages() == pages);
    CHECK(store.allocated_bytes() == 2 * 2 * 5 * 3 * 2 * 4 * sizeof(float));
    CHECK(store.keys(1).data - store.keys(0).data == 5 * 3 * 2 * 4);
    CHECK(store.values(1).data - store.values(0).data == 5 * 3 * 2 * 4);
    CHECK(store.keys(1).slots == 7);
    CHECK(store.keys(1).page_stride == 3 * 2 * 4);
    CHECK(store.keys(1).kv_head_stride == (layout == gpu::page_layout::hnd ? 3 * 4 : 4));
    CHECK(store.keys(1).slot_stride == (layout == gpu::page_layout::hnd ? 4 : 2 * 4));
    gpu::check_rows(store.keys(0), "keys");
    gpu::check_rows(store.values(1), "values");
  }
}

TEST_CASE("a captured graph finds the pages that a sequence has by then") {
  test_stream const stream;
  gpu::device_pages<float> store(shape, pages, page_size, gpu::page_layout::nhd);
  gpu::paged_view<float> const keys = store.keys(0);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  gpu::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  number_slots<<<dim3(2, 2), 1, 0, stream>>>(keys);
  gpu::check(cudaStreamEndCapture(stream, &graph));
  gpu::check(cudaGraphInstantiate(&replay, graph, 0));
  std::size_t const bytes = pages * page_size * 2 * 4 * sizeof(float);
  auto const run = [&] {
    gpu::check(cudaMemsetAsync(keys.data, 0, bytes, stream));
    gpu::check(cudaGraphLaunch(replay, stream));
    return read(keys, stream);
  };
  CHECK(run() == std::vector<float>(15, 0.0F));  // no pages yet

  // sequence 0: 4 slots in pages 4 and 1; sequence 1: none
  store.set_table_async(stream,
                        std::vector<index_t>{4, 1},
                        std::vector<index_t>{0, 2, 2},
                        std::vector<index_t>{1, 0});
  CHECK(run() == std::vector<float>{0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2});

  // sequence 0: 2 slots in page 0; sequence 1: 7 slots in pages 2, 3, 1
  store.set_table_async(stream,
                        std::vector<index_t>{0, 2, 3, 1},
                        std::vector<index_t>{0, 1, 4},
                        std::vector<index_t>{2, 1});
  CHECK(run() == std::vector<float>{0, 1, 0, 106, 0, 0, 100, 101, 102, 103, 104, 105, 0, 0, 0});
  gpu::check(cudaGraphExecDestroy(replay));
  gpu::check(cudaGraphDestroy(graph));
}

TEST_CASE("a table that contradicts itself is refused, and the one before stays") {
  test_stream const stream;
  gpu::device_pages<float> store(shape, pages, page_size, gpu::page_layout::hnd);
  using list = std::vector<index_t>;
  auto const set = [&](list const& indices, list const& indptr, list const& last) {
    store.set_table_async(stream, indices, indptr, last);
  };
  set({1, 0, 0}, {0, 3, 3}, {1, 0});
  for (auto const& wrong : {list{0, 2}, list{0, 2, 3}, list{1, 2, 2}, list{0, 2, 1}}) {
    CHECK_THROWS_AS(set({1, 2}, wrong, {1, 1}), std::invalid_argument);
  }
  CHECK_THROWS_AS(set({1, 2, 3, 4}, {0, 4, 4}, {1, 0}), std::invalid_argument);  // 12 slots
  CHECK_THROWS_AS(set({1, 5}, {0, 2, 2}, {1, 0}), std::invalid_argument);
  CHECK_THROWS_AS(set({1, -1}, {0, 2, 2}, {1, 0}), std::invalid_argument);
  CHECK_THROWS_AS(set({1, 2, 3}, {0, 3, 3}, {3, 0}), std::invalid_argument);  // 9 slots of 7
  CHECK_THROWS_AS(set({1, 2}, {0, 2, 2}, {4, 0}), std::invalid_argument);
  CHECK_THROWS_AS(set({1, 2}, {0, 2, 2}, {0, 0}), std::invalid_argument);
  CHECK_THROWS_AS(set({1, 2}, {0, 2, 2}, {1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(set({1, 2}, {0, 2, 2}, {1}), std::invalid_argument);
  list kept(3);
  gpu::check(cudaMemcpyAsync(
      kept.data(), store.keys(0).indices, 3 * sizeof(index_t), cudaMemcpyDeviceToHost, stream));
  gpu::check(cudaStreamSynchronize(stream));
  CHECK(kept == list{1, 0, 0});
  CHECK_THROWS_WITH_AS(gpu::device_pages<float>(shape, 0, page_size, gpu::page_layout::hnd),
                       "adore: pages = 0: a device_pages needs at least one",
                       std::invalid_argument);
  CHECK_THROWS_AS(gpu::device_pages<float>(shape, pages, 0, gpu::page_layout::hnd),
                  std::invalid_argument);
}

TEST_CASE("the host's cache refuses pages on the device") {
  CHECK_FALSE(kv_store<gpu::device_pages<float>>);
  CHECK(std::is_move_constructible_v<gpu::device_pages<float>>);
}

}  // namespace adore::testing
