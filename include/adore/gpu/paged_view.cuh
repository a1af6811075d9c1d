// SPDX-License-Identifier: Apache-2.0
// K or V of one layer in the pages of a serving engine.
#pragma once

#include "adore/gpu/fixed_divisor.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/host_device.hpp"
#include "adore/invalid_field.hpp"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cstdint>
#include <type_traits>

namespace adore::gpu {

/// How a page is laid out: [kv_head, slot, channel] or [slot, kv_head, channel].
enum class page_layout : std::uint8_t { hnd, nhd };

/// K (or V) in pages, indexed [sequence, kv_head, slot]: slot s of a sequence lies at place
/// s % page_size of its page number s / page_size. Slots need not be filled in order: what is in
/// them is for the ledger to say.
///
/// The arrays are those of FlashInfer's `paged_kv_t` (include/flashinfer/page.cuh, commit fb28d72):
/// pages [page, kv_head, page_size, channel] (HND) or [page, page_size, kv_head, channel] (NHD),
/// and per sequence a range of page numbers. There K and V share one object; here each is a view.
///
/// Memory: owns nothing; all arrays are in device memory and read by kernels only.
template <class T>
struct paged_view {
  using value_type = T;
  T* data = nullptr;
  index_t const* indices = nullptr;        // [indptr[sequences]] page numbers of all sequences
  index_t const* indptr = nullptr;         // [sequences + 1] where a sequence's numbers begin
  index_t const* last_page_len = nullptr;  // [sequence] slots in use in the last page, 1..page_size
  index_t sequences = 0, kv_heads = 0;
  index_t slots = 0;  // the most that a sequence's pages hold
  index_t channels = 0, page_size = 1;
  stride_t page_stride = 0, kv_head_stride = 0, slot_stride = 0;  // elements
  detail::fixed_divisor by_page{};  // by page_size: set by the constructors, never one alone

  constexpr paged_view() = default;

  /// Contiguous pages.
  ///
  /// @param n_slots  the most slots that a sequence's pages hold, a bound for launches
  /// @throws std::invalid_argument if page_size is not positive
  constexpr paged_view(T* pages,
                       page_layout layout,
                       index_t n_sequences,
                       index_t n_kv_heads,
                       index_t n_slots,
                       index_t n_channels,
                       index_t slots_per_page,
                       index_t const* page_numbers,
                       index_t const* page_ranges,
                       index_t const* last_page_lengths)
      : paged_view(
            pages,
            n_sequences,
            n_kv_heads,
            n_slots,
            n_channels,
            slots_per_page,
            stride_t{n_kv_heads} * slots_per_page * n_channels,
            layout == page_layout::hnd ? stride_t{slots_per_page} * n_channels : n_channels,
            layout == page_layout::hnd ? stride_t{n_channels} : stride_t{n_kv_heads} * n_channels,
            page_numbers,
            page_ranges,
            last_page_lengths) {}

  /// Pages with strides of their own, in elements.
  constexpr paged_view(T* pages,
                       index_t n_sequences,
                       index_t n_kv_heads,
                       index_t n_slots,
                       index_t n_channels,
                       index_t slots_per_page,
                       stride_t per_page,
                       stride_t per_kv_head,
                       stride_t per_slot,
                       index_t const* page_numbers,
                       index_t const* page_ranges,
                       index_t const* last_page_lengths)
      : data(pages),
        indices(page_numbers),
        indptr(page_ranges),
        last_page_len(last_page_lengths),
        sequences(n_sequences),
        kv_heads(n_kv_heads),
        slots(n_slots),
        channels(n_channels),
        page_size(slots_per_page),
        page_stride(per_page),
        kv_head_stride(per_kv_head),
        slot_stride(per_slot) {
    require_field(slots_per_page > 0,
                  "paged_view.page_size",
                  slots_per_page,
                  "a page must have room for a token");
    by_page = detail::fixed_divisor(slots_per_page);
  }

  /// First of the `channels` contiguous elements of a slot.
  ///
  /// @pre the sequence has a page for the slot: nobody looks, and behind a sequence's pages lie
  ///      those of the next
  ADORE_HOST_DEVICE constexpr T* operator()(index_t sequence,
                                            index_t kv_head,
                                            index_t slot) const noexcept {
    index_t const page = by_page.quotient(slot);
    return data + indices[indptr[sequence] + page] * page_stride + kv_head * kv_head_stride +
           (slot - page * page_size) * slot_stride;
  }

  /// Slots in use of a sequence, as its engine counts them.
  ADORE_HOST_DEVICE constexpr index_t slots_of(index_t sequence) const noexcept {
    index_t const pages = indptr[sequence + 1] - indptr[sequence];
    return pages == 0 ? 0 : (pages - 1) * page_size + last_page_len[sequence];
  }

  /// The same pages, read-only.
  template <class U>
    requires(std::is_same_v<U, T const> && !std::is_const_v<T>)
  ADORE_HOST_DEVICE constexpr operator paged_view<U>() const noexcept {
    paged_view<U> same;
    same.data = data;
    same.indices = indices;
    same.indptr = indptr;
    same.last_page_len = last_page_len;
    same.sequences = sequences;
    same.kv_heads = kv_heads;
    same.slots = slots;
    same.channels = channels;
    same.page_size = page_size;
    same.page_stride = page_stride;
    same.kv_head_stride = kv_head_stride;
    same.slot_stride = slot_stride;
    same.by_page = by_page;
    return same;
  }
};

static_assert(kv_rows<paged_view<float>> && kv_rows<paged_view<float const>>);

}  // namespace adore::gpu
