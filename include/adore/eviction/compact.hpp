// SPDX-License-Identifier: Apache-2.0
// What happens to K/V after a release: nothing, a gather, or the paper's matrix product.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace adore {

/// `slot_reuse`: the next token overwrites a freed slot, nothing moves. `gather`: the kept rows are
/// moved together, in ascending position. `matmul`: the same through a 0/1 matrix.
enum class compaction : std::uint8_t { slot_reuse, gather, matmul };

namespace detail {

/// rows[i] = K[order[i]]: O(kept x channels) moved.
template <slot_addressed View>
void gather_rows(View view, index_t sequence, index_t kv_head, std::span<index_t const> order) {
  using T = typename View::value_type;
  auto const channels = static_cast<std::size_t>(view.channels);
  std::vector<T> rows(order.size() * channels);
  auto row = rows.begin();
  for (index_t const slot : order) {
    T const* const from = view(sequence, kv_head, slot);
    for (index_t c = 0; c < view.channels; ++c) *row++ = from[c * view.channel_stride];
  }
  row = rows.begin();
  for (index_t i = 0; i < static_cast<index_t>(order.size()); ++i) {
    T* const to = view(sequence, kv_head, i);
    for (index_t c = 0; c < view.channels; ++c) to[c * view.channel_stride] = *row++;
  }
}

/// K' = S K with S[i][order[i]] = 1 and zeros elsewhere: O(kept x slots x channels) multiplied.
template <slot_addressed View>
void multiply_rows(View view, index_t sequence, index_t kv_head, std::span<index_t const> order) {
  using T = typename View::value_type;
  auto const channels = static_cast<std::size_t>(view.channels);
  auto const slots = static_cast<std::size_t>(view.slots);
  std::vector<float> selection(order.size() * slots, 0.0F);  // [kept, slot]
  for (std::size_t i = 0; i < order.size(); ++i) {
    selection[i * slots + static_cast<std::size_t>(order[i])] = 1.0F;
  }
  std::vector<float> product(order.size() * channels, 0.0F);  // [kept, channel]
  for (std::size_t i = 0; i < order.size(); ++i) {
    float* const to = product.data() + i * channels;
    for (index_t slot = 0; slot < view.slots; ++slot) {
      float const factor = selection[i * slots + static_cast<std::size_t>(slot)];
      T const* const from = view(sequence, kv_head, slot);
      for (index_t c = 0; c < view.channels; ++c) {
        to[c] += factor * static_cast<float>(from[c * view.channel_stride]);
      }
    }
  }
  for (std::size_t i = 0; i < order.size(); ++i) {
    T* const to = view(sequence, kv_head, static_cast<index_t>(i));
    for (index_t c = 0; c < view.channels; ++c) {
      to[c * view.channel_stride] =
          static_cast<T>(product[i * channels + static_cast<std::size_t>(c)]);
    }
  }
}

}  // namespace detail

/// Moves the rows of the kept tokens of one KV head to the slots 0, 1, ...
///
/// Source: arXiv:2407.02328, section 2.2 ("matrix slicing as multiplication"); policies.md 16. The
///         product is exact for finite numbers; an infinity or NaN anywhere in the lane spreads,
///         and -0 becomes +0.
/// @param order  slots of the kept tokens in ascending position
template <slot_addressed View>
void compact(
    compaction kind, View view, index_t sequence, index_t kv_head, std::span<index_t const> order) {
  if (kind == compaction::gather) detail::gather_rows(view, sequence, kv_head, order);
  if (kind == compaction::matmul) detail::multiply_rows(view, sequence, kv_head, order);
}

}  // namespace adore
