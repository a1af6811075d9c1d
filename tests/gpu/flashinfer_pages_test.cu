// SPDX-License-Identifier: Apache-2.0
// A slot of adore's views is where FlashInfer looks for it, in K and in V.
#include "flashinfer/flashinfer_pages.cuh"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace adore::testing {
namespace {

// two sequences: a page with 1 slot used, and two pages with 1 slot used in the last
constexpr index_t kv_heads = 2, channels = 16;
struct tables {
  std::vector<index_t> indices{2, 0, 1}, indptr{0, 1, 3}, last_page_len{1, 1};
  std::vector<float> keys, values;
};
flashinfer::paged_kv_t<float, index_t> pages_in(tables& t,
                                                index_t page_size,
                                                flashinfer::QKVLayout layout) {
  t.keys.resize(static_cast<std::size_t>(3 * page_size * kv_heads * channels));
  t.values.resize(t.keys.size());
  return {kv_heads,
          static_cast<std::uint32_t>(page_size),
          channels,
          2,
          layout,
          t.keys.data(),
          t.values.data(),
          t.indices.data(),
          t.indptr.data(),
          t.last_page_len.data()};
}

TEST_CASE("a slot is where FlashInfer looks for it, with any page size in both layouts") {
  for (auto const layout : {flashinfer::QKVLayout::kNHD, flashinfer::QKVLayout::kHND}) {
    for (index_t const page_size : {1, 4, 16}) {
      tables t;
      auto const pages = pages_in(t, page_size, layout);
      auto const keys = flashinfer_example::keys_of(pages, 2 * page_size);
      auto const values = flashinfer_example::values_of(pages, 2 * page_size);
      CHECK(keys.sequences == 2);
      CHECK(keys.kv_heads == kv_heads);
      CHECK(keys.channels == channels);
      CHECK(keys.slots_of(0) == 1);
      CHECK(keys.slots_of(1) == page_size + 1);
      for (index_t slot = 0; slot < 2 * page_size; ++slot) {
        for (index_t head = 0; head < kv_heads; ++head) {
          auto const offset = static_cast<std::ptrdiff_t>(pages.get_elem_offset(
              static_cast<std::size_t>(t.indices[static_cast<std::size_t>(1 + slot / page_size)]),
              static_cast<std::size_t>(head),
              static_cast<std::size_t>(slot % page_size),
              0));
          CHECK(keys(1, head, slot) - t.keys.data() == offset);
          CHECK(values(1, head, slot) - t.values.data() == offset);
        }
      }
    }
  }
}

template <class Pages>
void check_strides_of_values(Pages pages, tables& t) {
  if constexpr (requires { pages.v_stride_page; }) {
    pages.v_stride_page = 300;
    pages.v_stride_n = 40;
    pages.v_stride_h = 20;
    // slot 5 of sequence 1 is slot 1 of page 1
    CHECK(flashinfer_example::values_of(pages, 8)(1, 1, 5) - t.values.data() == 300 + 40 + 20);
    CHECK(flashinfer_example::keys_of(pages, 8)(1, 1, 5) - t.keys.data() ==
          (1 * 4 + 1) * kv_heads * channels + channels);
  }
}
TEST_CASE("V may have strides of its own, where FlashInfer has them") {
  tables t;
  check_strides_of_values(pages_in(t, 4, flashinfer::QKVLayout::kNHD), t);
}

}  // namespace
}  // namespace adore::testing
