// SPDX-License-Identifier: Apache-2.0
// FlashInfer's pages as K and V of adore, so that adore appends and releases in the memory that
// FlashInfer's attention reads.
//
// FlashInfer attends slots 0 .. n - 1 of a sequence, n the same for all its heads, and knows no
// holes. Slot reuse keeps lanes like that, whatever the scope, if a step brings one token per
// sequence, lanes have budget + 1 slots, all of the same budget, and none releases below it. Then n
// is min(tokens seen before, budget) + 1 with the new token: once the budget is full, a new token
// takes a victim's slot, and page numbers and FlashInfer's plan stay as they are. Slots are not in
// order of positions: keys are rotated before they are appended, not by FlashInfer; no windows.
#pragma once

#include <adore/gpu/paged_view.cuh>

#include <flashinfer/page.cuh>

#include <type_traits>

namespace flashinfer_example {

/// @param slots  the most that a sequence's pages hold, at least the ledger's
template <class T, class Index>
adore::gpu::paged_view<T> keys_of(flashinfer::paged_kv_t<T, Index> const& of,
                                  adore::index_t slots) {
  static_assert(std::is_same_v<Index, adore::index_t>, "adore numbers pages by 32 bits");
  return {of.k_data,
          static_cast<Index>(of.batch_size),
          static_cast<Index>(of.num_heads),
          slots,
          static_cast<Index>(of.head_dim),
          static_cast<Index>(unsigned{of.page_size}),
          of.stride_page,
          of.stride_h,
          of.stride_n,
          of.indices,
          of.indptr,
          of.last_page_len};
}
template <class T, class Index>
adore::gpu::paged_view<T> values_of(flashinfer::paged_kv_t<T, Index> of, adore::index_t slots) {
  of.k_data = of.v_data;
  if constexpr (requires { of.v_stride_page; }) {  // version 0.6.9 has one set of strides for both
    of.stride_page = of.v_stride_page;
    of.stride_h = of.v_stride_h;
    of.stride_n = of.v_stride_n;
  }
  return keys_of(of, slots);
}

}  // namespace flashinfer_example
