// SPDX-License-Identifier: Apache-2.0
// Non-owning views of keys or values in an engine's own memory, and the customisation point that
// makes them from the engine's own tensor type.
#pragma once

#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore {

using stride_t = std::ptrdiff_t;  ///< distance between neighbours, in elements

/// Keys (or values) of one layer, indexed [sequence, kv_head, slot, channel], each with a stride.
///
/// A trivially copyable pointer with numbers: pass it by value, also to kernels.
template <class T>
struct kv_view {
  using value_type = T;
  T* data = nullptr;
  index_t sequences = 0, kv_heads = 0, slots = 0, channels = 0;
  stride_t sequence_stride = 0, kv_head_stride = 0, slot_stride = 0, channel_stride = 1;

  constexpr kv_view() = default;

  /// Contiguous memory [sequence, kv_head, slot, channel] behind a raw pointer.
  ADORE_HOST_DEVICE constexpr kv_view(
      T* first, index_t n_sequences, index_t n_kv_heads, index_t n_slots, index_t n_channels)
      : kv_view(first,
                n_sequences,
                n_kv_heads,
                n_slots,
                n_channels,
                stride_t{n_kv_heads} * n_slots * n_channels,
                stride_t{n_slots} * n_channels,
                n_channels,
                1) {}

  /// Strided memory behind a raw pointer. Strides are in elements.
  ADORE_HOST_DEVICE constexpr kv_view(T* first,
                                      index_t n_sequences,
                                      index_t n_kv_heads,
                                      index_t n_slots,
                                      index_t n_channels,
                                      stride_t per_sequence,
                                      stride_t per_kv_head,
                                      stride_t per_slot,
                                      stride_t per_channel)
      : data(first),
        sequences(n_sequences),
        kv_heads(n_kv_heads),
        slots(n_slots),
        channels(n_channels),
        sequence_stride(per_sequence),
        kv_head_stride(per_kv_head),
        slot_stride(per_slot),
        channel_stride(per_channel) {}

  /// Strided memory inside a span, whose size is checked.
  ///
  /// @param strides elements between neighbours: [sequence, kv_head, slot, channel], all >= 0
  /// @throws std::invalid_argument if the last element lies outside the span
  constexpr kv_view(std::span<T> memory,
                    index_t n_sequences,
                    index_t n_kv_heads,
                    index_t n_slots,
                    index_t n_channels,
                    std::span<stride_t const, 4> strides)
      : kv_view(memory.data(),
                n_sequences,
                n_kv_heads,
                n_slots,
                n_channels,
                strides[0],
                strides[1],
                strides[2],
                strides[3]) {
    bool const empty = sequences == 0 || kv_heads == 0 || slots == 0 || channels == 0;
    stride_t const last = (sequences - 1) * sequence_stride + (kv_heads - 1) * kv_head_stride +
                          (slots - 1) * slot_stride + (channels - 1) * channel_stride;
    if (!empty && static_cast<std::size_t>(last) >= memory.size()) {
      throw std::invalid_argument("kv_view: the shape and strides reach element " +
                                  std::to_string(last) + " of a span of " +
                                  std::to_string(memory.size()));
    }
  }

  /// First channel of a slot; the next channel is `channel_stride` further.
  ADORE_HOST_DEVICE constexpr T* operator()(index_t sequence,
                                            index_t kv_head,
                                            index_t slot) const noexcept {
    return data + sequence * sequence_stride + kv_head * kv_head_stride + slot * slot_stride;
  }

  /// The same memory, read-only.
  template <class U>
    requires(std::same_as<U, T const> && !std::is_const_v<T>)
  ADORE_HOST_DEVICE constexpr operator kv_view<U>() const noexcept {
    return {data,
            sequences,
            kv_heads,
            slots,
            channels,
            sequence_stride,
            kv_head_stride,
            slot_stride,
            channel_stride};
  }
};

/// Queries, keys, values or outputs of the tokens of one step: [token, head, channel], channels
/// contiguous.
template <class T>
struct token_view {
  using value_type = T;
  T* data = nullptr;
  index_t tokens = 0, heads = 0, channels = 0;
  stride_t token_stride = 0, head_stride = 0;

  constexpr token_view() = default;
  /// Contiguous memory [token, head, channel].
  ADORE_HOST_DEVICE constexpr token_view(T* first,
                                         index_t n_tokens,
                                         index_t n_heads,
                                         index_t n_channels)
      : token_view(first, n_tokens, n_heads, n_channels, stride_t{n_heads} * n_channels) {}
  /// Tokens `per_token` elements apart, the heads of a token contiguous.
  ADORE_HOST_DEVICE constexpr token_view(
      T* first, index_t n_tokens, index_t n_heads, index_t n_channels, stride_t per_token)
      : data(first),
        tokens(n_tokens),
        heads(n_heads),
        channels(n_channels),
        token_stride(per_token),
        head_stride(n_channels) {}

  /// Contiguous memory inside a span, whose size is checked.
  ///
  /// @throws std::invalid_argument if the span is too small
  constexpr token_view(std::span<T> memory, index_t n_tokens, index_t n_heads, index_t n_channels)
      : token_view(memory.data(), n_tokens, n_heads, n_channels) {
    auto const needed = static_cast<std::size_t>(n_tokens) * static_cast<std::size_t>(n_heads) *
                        static_cast<std::size_t>(n_channels);
    if (memory.size() < needed) {
      throw std::invalid_argument("token_view: a span of " + std::to_string(memory.size()) +
                                  " elements is too small for " + std::to_string(needed));
    }
  }

  ADORE_HOST_DEVICE constexpr T* operator()(index_t token, index_t head) const noexcept {
    return data + token * token_stride + head * head_stride;
  }

  template <class U>
    requires(std::same_as<U, T const> && !std::is_const_v<T>)
  ADORE_HOST_DEVICE constexpr operator token_view<U>() const noexcept {
    token_view<T const> same{data, tokens, heads, channels, token_stride};
    same.head_stride = head_stride;
    return same;
  }
};

/// An engine's tensor type that says how it looks as K or V of a layer: a function
/// `adore::kv_view<T> adore_kv_view(tensor const&)` in the namespace of the tensor.
template <class Tensor>
concept viewable_as_kv = requires(Tensor&& tensor) {
  {adore_kv_view(tensor).data};
  requires std::same_as<decltype(adore_kv_view(tensor)),
                        kv_view<typename decltype(adore_kv_view(tensor))::value_type>>;
};

/// Keys (or values) of one layer in whatever memory: the call gives the first channel of a slot,
/// the next one is `channel_stride` elements further. `kv_view` is such, and `page_view`.
template <class View>
concept slot_addressed = std::is_trivially_copyable_v<View> &&
    requires(View const& view, index_t sequence, index_t kv_head, index_t slot) {
  { view(sequence, kv_head, slot) } -> std::same_as<typename View::value_type*>;
  { view.sequences } -> std::convertible_to<index_t>;
  { view.kv_heads } -> std::convertible_to<index_t>;
  { view.slots } -> std::convertible_to<index_t>;
  { view.channels } -> std::convertible_to<index_t>;
  { view.channel_stride } -> std::convertible_to<stride_t>;
};

/// The view itself, or what the engine's `adore_kv_view` makes of its tensor.
template <slot_addressed View>
constexpr View kv_view_of(View view) noexcept {
  return view;
}
template <viewable_as_kv Tensor>
constexpr auto kv_view_of(Tensor&& tensor) {
  return adore_kv_view(tensor);
}

static_assert(slot_addressed<kv_view<float>> && slot_addressed<kv_view<float const>>);
static_assert(std::is_trivially_copyable_v<token_view<float>>);

}  // namespace adore
