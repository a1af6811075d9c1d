// SPDX-License-Identifier: Apache-2.0
// What kernels ask of K/V and of the tensors of a step: where a row of channels begins, and that it
// can be read 16 bytes at a time.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::gpu {

/// K or V of one layer inside a kernel: a row of contiguous channels for each slot of each KV head
/// of each sequence. `adore::kv_view` and `paged_view` are such; the call operator must be marked
/// ADORE_HOST_DEVICE or __device__.
template <class View>
concept kv_rows = std::is_trivially_copyable_v<View> &&
    requires(View const& view, index_t sequence, index_t kv_head, index_t slot) {
  { view(sequence, kv_head, slot) } -> std::same_as<typename View::value_type*>;
  { view.sequences } -> std::convertible_to<index_t>;
  { view.kv_heads } -> std::convertible_to<index_t>;
  { view.slots } -> std::convertible_to<index_t>;  // numbers that a token may get in a lane
  { view.channels } -> std::convertible_to<index_t>;
};

/// Element type of rows, whether the view may write or not.
template <kv_rows View>
using element_of = std::remove_const_t<typename View::value_type>;

inline constexpr index_t chunk_bytes = 16;  ///< what one thread reads or writes at a time

/// Chunks of a row of `channels` elements.
template <class T>
ADORE_HOST_DEVICE constexpr index_t chunks_of(index_t channels) {
  return channels / (chunk_bytes / static_cast<index_t>(sizeof(T)));
}

namespace detail {

inline bool is_aligned(void const* data, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

[[noreturn]] inline void refuse_rows(std::string const& what, std::string const& why) {
  throw std::invalid_argument("adore: " + what + ": " + why);
}
/// Refuses a distance between neighbours that leaves chunks unaligned; of one there are none.
inline void check_stride(std::string const& what,
                         char const* which,
                         stride_t stride,
                         std::size_t element_bytes,
                         index_t count) {
  if (count > 1 && stride * static_cast<stride_t>(element_bytes) % chunk_bytes != 0) {
    refuse_rows(what + "." + which + " = " + std::to_string(stride),
                "rows must begin at multiples of 16 bytes");
  }
}
inline void check_start(std::string const& what,
                        void const* data,
                        index_t channels,
                        std::size_t element_bytes,
                        bool is_empty) {
  if (data == nullptr && !is_empty) refuse_rows(what + ".data", "is null");
  if (channels <= 0 ||
      static_cast<std::size_t>(channels) * element_bytes % std::size_t{chunk_bytes} != 0) {
    refuse_rows(what + ".channels = " + std::to_string(channels),
                "a row must be a multiple of 16 bytes");
  }
  if (!is_aligned(data, chunk_bytes)) {
    refuse_rows(what + ".data", "must be aligned to 16 bytes");
  }
}

/// @param alignment  in bytes
inline void require_workspace(char const* stage,
                              void const* workspace,
                              std::size_t bytes,
                              std::size_t alignment) {
  if (bytes == 0) return;
  if (workspace == nullptr) {
    throw std::invalid_argument(std::string("adore: ") + stage + ": workspace is null, " +
                                std::to_string(bytes) + " bytes are needed");
  }
  if (!is_aligned(workspace, alignment)) {
    throw std::invalid_argument(std::string("adore: ") + stage + ": workspace must be aligned to " +
                                std::to_string(alignment) + " bytes");
  }
}

}  // namespace detail

/// Refuses K or V that kernels cannot read in chunks.
///
/// @param what  the name by which an exception calls the view
/// @throws std::invalid_argument naming the member that is wrong
template <kv_rows View>
void check_rows(View const& view, char const* what) {
  constexpr std::size_t bytes = sizeof(typename View::value_type);
  if constexpr (requires { view.channel_stride; }) {
    if (view.channel_stride != 1 && view.channels > 1) {
      detail::refuse_rows(
          std::string(what) + ".channel_stride = " + std::to_string(view.channel_stride),
          "kernels need the channels of a slot side by side, a stride of 1");
    }
  }
  if constexpr (requires { view.data; }) {
    detail::check_start(what,
                        view.data,
                        view.channels,
                        bytes,
                        view.sequences == 0 || view.kv_heads == 0 || view.slots == 0);
  }
  if constexpr (requires { view.sequence_stride; }) {
    detail::check_stride(what, "sequence_stride", view.sequence_stride, bytes, view.sequences);
  }
  if constexpr (requires { view.page_stride; }) {
    detail::check_stride(what, "page_stride", view.page_stride, bytes, 2);
  }
  if constexpr (requires { view.kv_head_stride; }) {
    detail::check_stride(what, "kv_head_stride", view.kv_head_stride, bytes, view.kv_heads);
  }
  if constexpr (requires { view.slot_stride; }) {
    detail::check_stride(what, "slot_stride", view.slot_stride, bytes, view.slots);
  }
  if constexpr (requires { view.indices; }) {
    if (view.sequences > 0 && view.indptr == nullptr) {
      detail::refuse_rows(std::string(what) + ".indptr", "is null");
    }
    if (view.sequences > 0 && view.indices == nullptr) {
      detail::refuse_rows(std::string(what) + ".indices", "is null");
    }
  }
}

/// The same for queries, keys, values or outputs of a step.
template <class T>
void check_tokens(token_view<T> const& tokens, char const* what) {
  detail::check_start(
      what, tokens.data, tokens.channels, sizeof(T), tokens.tokens == 0 || tokens.heads == 0);
  detail::check_stride(what, "token_stride", tokens.token_stride, sizeof(T), tokens.tokens);
  detail::check_stride(what, "head_stride", tokens.head_stride, sizeof(T), tokens.heads);
}

/// Refuses shapes that do not fit together.
///
/// @throws std::logic_error "adore: append: k have 3 heads, the keys have 8"
inline void require_same(char const* stage,
                         char const* what,
                         char const* unit,
                         index_t count,
                         char const* other,
                         index_t wanted) {
  if (count != wanted) {
    throw std::logic_error(std::string("adore: ") + stage + ": " + what + " have " +
                           std::to_string(count) + " " + unit + ", " + other + " " +
                           std::to_string(wanted));
  }
}

/// Refuses tensors of a step that have not room for all of its tokens.
///
/// @throws std::logic_error
inline void require_tokens(char const* stage, char const* what, index_t tokens, index_t wanted) {
  if (tokens < wanted) {
    throw std::logic_error(std::string("adore: ") + stage + ": " + what + " have room for " +
                           std::to_string(tokens) + " tokens: must be " + std::to_string(wanted) +
                           ", max_new for each row");
  }
}

/// Refuses K or V that are not those of a cache of so many rows, KV heads and slots.
///
/// @throws std::logic_error
template <kv_rows View>
void require_fits(char const* stage,
                  char const* what,
                  View const& view,
                  index_t rows,
                  index_t kv_heads,
                  index_t slots) {
  require_same(stage, what, "KV heads", view.kv_heads, "the ledger has", kv_heads);
  if (view.sequences < rows || view.slots < slots) {
    throw std::logic_error(std::string("adore: ") + stage + ": " + what + " hold " +
                           std::to_string(view.sequences) + " sequences of " +
                           std::to_string(view.slots) + " slots, the ledger has " +
                           std::to_string(rows) + " of " + std::to_string(slots));
  }
}

static_assert(kv_rows<kv_view<float>> && kv_rows<kv_view<float const>>);

}  // namespace adore::gpu
