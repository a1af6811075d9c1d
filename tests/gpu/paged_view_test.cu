// SPDX-License-Identifier: Apache-2.0
// Pages of a serving engine as K or V, and what is refused as either.
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/paged_view.cuh"
#include "support/device_tensor.cuh"

#include <cuda_fp16.h>

#include <doctest/doctest.h>

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::testing {
namespace {

// three sequences: 3 pages with 2 slots used in the last, none, 1 full page
constexpr index_t page_size = 4, kv_heads = 2, channels = 8;
std::vector<index_t> const indices{5, 0, 3, 1};
std::vector<index_t> const indptr{0, 3, 3, 4};
std::vector<index_t> const last_page_len{2, 0, 4};

template <class T>
gpu::paged_view<T> view_of(T* data, gpu::page_layout layout) {
  return {data,
          layout,
          3,
          kv_heads,
          12,
          channels,
          page_size,
          indices.data(),
          indptr.data(),
          last_page_len.data()};
}

__global__ void first_channels(gpu::paged_view<float const> pages, index_t sequence, float* out) {
  auto const slot = static_cast<index_t>(threadIdx.x);
  auto const head = static_cast<index_t>(blockIdx.x);
  if (slot < pages.slots_of(sequence)) {
    out[head * static_cast<index_t>(blockDim.x) + slot] = *pages(sequence, head, slot);
  }
}

std::string reason(auto const& view) {
  try {
    gpu::check_rows(view, "keys");
  } catch (std::invalid_argument const& refusal) {
    return refusal.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a slot's row is found through the page table in both layouts") {
  std::vector<float> memory(6 * page_size * kv_heads * channels);
  auto const hnd = view_of(memory.data(), gpu::page_layout::hnd);
  auto const nhd = view_of(memory.data(), gpu::page_layout::nhd);
  for (index_t slot = 0; slot < 10; ++slot) {
    for (index_t head = 0; head < kv_heads; ++head) {
      index_t const page = indices[static_cast<std::size_t>(slot / 4)];
      CHECK(hnd(0, head, slot) - memory.data() ==
            ((page * kv_heads + head) * page_size + slot % 4) * channels);
      CHECK(nhd(0, head, slot) - memory.data() ==
            ((page * page_size + slot % 4) * kv_heads + head) * channels);
    }
  }
  CHECK(hnd(2, 1, 3) - memory.data() == ((1 * kv_heads + 1) * page_size + 3) * channels);
  CHECK(hnd.slots_of(0) == 10);
  CHECK(hnd.slots_of(1) == 0);
  CHECK(hnd.slots_of(2) == 4);
}

TEST_CASE("slots are divided by any page size without an error") {
  for (index_t const size : {1, 2, 3, 5, 7, 16, 48, 100, 1 << 16, (1 << 30) + 1, 2147483647}) {
    gpu::detail::fixed_divisor const by(size);
    for (index_t const near : {0, size, 2 * (size / 3), 1 << 20, 2147483647}) {
      for (index_t const n : {near - 2, near - 1, near, near == 2147483647 ? 0 : near + 1}) {
        if (n >= 0) CHECK(by.quotient(n) == n / size);
      }
    }
  }
  for (index_t n = 0; n < 5000; ++n) {
    CHECK(gpu::detail::fixed_divisor(17).quotient(n) == n / 17);
  }
}

TEST_CASE("kernels read pages") {
  test_stream const stream;
  std::vector<float> numbers(6 * page_size * kv_heads * channels);
  std::iota(numbers.begin(), numbers.end(), 0.0F);
  device_tensor<float> memory(numbers);
  device_tensor<index_t> pages(indices), ranges(indptr), ends(last_page_len);
  device_tensor<float> out(std::vector<float>(kv_heads * 12, -1.0F));
  gpu::paged_view<float> const view(memory.data(),
                                    gpu::page_layout::nhd,
                                    3,
                                    kv_heads,
                                    12,
                                    channels,
                                    page_size,
                                    pages.data(),
                                    ranges.data(),
                                    ends.data());
  first_channels<<<kv_heads, 12, 0, stream>>>(view, 0, out.data());
  gpu::check(cudaGetLastError());
  out.fetch(stream);
  auto const on_host = view_of(numbers.data(), gpu::page_layout::nhd);
  for (index_t head = 0; head < kv_heads; ++head) {
    for (index_t slot = 0; slot < 12; ++slot) {
      CHECK(out.host[static_cast<std::size_t>(head * 12 + slot)] ==
            (slot < 10 ? *on_host(0, head, slot) : -1.0F));
    }
  }
}

TEST_CASE("memory that kernels cannot read in pieces of 16 bytes is refused by name") {
  alignas(16) static float memory[4096];
  using view = kv_view<float>;
  CHECK(reason(view(memory, 2, 2, 4, 8)) == "");
  CHECK(reason(view(memory, 2, 2, 4, 8, 64, 32, 1, 4)).find("channel_stride = 4") !=
        std::string::npos);
  CHECK(reason(view(memory + 1, 2, 2, 4, 8)).find("data") != std::string::npos);
  CHECK(reason(view(memory, 2, 2, 4, 6)).find("channels = 6") != std::string::npos);
  CHECK(reason(view(memory, 2, 2, 4, 8, 66, 32, 8, 1)).find("sequence_stride = 66") !=
        std::string::npos);
  CHECK(reason(view(memory, 2, 2, 4, 8, 64, 33, 8, 1)).find("kv_head_stride = 33") !=
        std::string::npos);
  CHECK(reason(view(memory, 2, 2, 4, 8, 64, 32, 9, 1)).find("slot_stride = 9") !=
        std::string::npos);
  CHECK(reason(view(memory, 1, 1, 4, 8, 1, 1, 8, 1)) == "");  // strides that nobody walks
  CHECK(reason(gpu::paged_view<float>(memory, 1, 1, 8, 8, 4, 33, 0, 8, nullptr, nullptr, nullptr))
            .find("page_stride = 33") != std::string::npos);
  CHECK_THROWS_WITH_AS(
      gpu::paged_view<float>(memory, 1, 1, 8, 8, 0, 32, 0, 8, nullptr, nullptr, nullptr),
      "adore: paged_view.page_size = 0: a page must have room for a token",
      std::invalid_argument);
  CHECK(reason(view(nullptr, 2, 2, 4, 8)).find("data: is null") != std::string::npos);
  CHECK(reason(view(nullptr, 2, 2, 0, 8)) == "");  // without slots there is nothing to read
  CHECK(reason(gpu::paged_view<float>(memory, 1, 1, 8, 8, 4, 32, 0, 8, nullptr, nullptr, nullptr))
            .find("indptr: is null") != std::string::npos);
  CHECK_THROWS_AS(gpu::check_tokens(token_view<float>(memory, 2, 2, 8, 17), "q"),
                  std::invalid_argument);
  CHECK_THROWS_AS(gpu::check_tokens(token_view<float>(memory + 2, 2, 2, 8), "q"),
                  std::invalid_argument);
}

}  // namespace adore::testing
