// SPDX-License-Identifier: Apache-2.0
// Pages of adore, such as those of a `device_pages`, as FlashInfer takes them.
#pragma once

#include <adore/gpu/paged_view.cuh>

#include <flashinfer/page.cuh>

#include <cstdint>

namespace flashinfer_example {

/// What the length of a sequence must be for FlashInfer's attention is said in
/// flashinfer_pages.cuh.
///
/// @pre K and V have the same strides, and a page table without gaps; FlashInfer only reads the
///      table, though its pointers are not const
template <class T>
flashinfer::paged_kv_t<T, adore::index_t> paged_kv_of(adore::gpu::paged_view<T> const& keys,
                                                      adore::gpu::paged_view<T> const& values) {
  auto const number = [](auto n) { return static_cast<std::uint32_t>(n); };
  // [page, second, third, channel], whichever of slots and heads is the second
  std::int64_t const strides[] = {keys.page_stride, keys.slot_stride, keys.kv_head_stride};
  return {number(keys.kv_heads),
          number(keys.page_size),
          number(keys.channels),
          number(keys.sequences),
          flashinfer::QKVLayout::kNHD,
          keys.data,
          values.data,
          strides,
          const_cast<adore::index_t*>(keys.indices),
          const_cast<adore::index_t*>(keys.indptr),
          const_cast<adore::index_t*>(keys.last_page_len)};
}

}  // namespace flashinfer_example
