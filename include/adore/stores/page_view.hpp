// SPDX-License-Identifier: Apache-2.0
// K or V of one layer in the pages of a paged_store.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

namespace adore {

/// K (or V) of one layer in pages [page, kv_head, slot in page, channel], indexed [sequence,
/// kv_head, slot]: slot s of a sequence lies at place s % page_size of the page that the sequence's
/// table names at s / page_size.
///
/// Memory: owns nothing. A change of the table is seen at once.
template <class T>
struct page_view {
  using value_type = T;
  static constexpr stride_t channel_stride = 1;
  T* data = nullptr;
  index_t const* table = nullptr;  // [sequence, slots / page_size] page numbers
  index_t sequences = 0, kv_heads = 0;
  index_t slots = 0;  // numbers that a token may get in a lane, a multiple of page_size
  index_t channels = 0, page_size = 1;

  /// First channel of a slot.
  constexpr T* operator()(index_t sequence, index_t kv_head, index_t slot) const noexcept {
    stride_t const page = table[stride_t{sequence} * (slots / page_size) + slot / page_size];
    return data + ((page * kv_heads + kv_head) * page_size + slot % page_size) * channels;
  }
};

static_assert(slot_addressed<page_view<float>> && slot_addressed<page_view<float const>>);

}  // namespace adore
