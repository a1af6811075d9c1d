// SPDX-License-Identifier: Apache-2.0
// K/V in host memory, owned by the library.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <vector>

namespace adore {

/// Two contiguous arrays [layer, sequence, kv_head, slot, channel], allocated once.
///
/// @tparam T  element type, convertible to and from float
template <class T = float>
class host_store {
 public:
  using value_type = T;
  static constexpr scope finest_scope = scope::kv_head;

  explicit host_store(kv_shape const& shape)
      : shape_(shape),
        layer_size_(
            static_cast<std::size_t>(shape.sequences) * static_cast<std::size_t>(shape.kv_heads) *
            static_cast<std::size_t>(shape.slots) * static_cast<std::size_t>(shape.channels)),
        keys_(layer_size_ * static_cast<std::size_t>(shape.layers)),
        values_(keys_.size()) {}

  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return 1; }
  /// Freed slots are written over by the next tokens: nothing to do.
  index_t release(released_positions const& tokens) noexcept {
    return static_cast<index_t>(tokens.positions.size());
  }
  kv_view<T> keys(index_t layer) noexcept { return view(keys_, layer); }
  kv_view<T> values(index_t layer) noexcept { return view(values_, layer); }
  std::size_t allocated_bytes() const noexcept { return 2 * keys_.size() * sizeof(T); }

 private:
  kv_view<T> view(std::vector<T>& data, index_t layer) noexcept {
    return {data.data() + layer_size_ * static_cast<std::size_t>(layer),
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels};
  }

  kv_shape shape_;
  std::size_t layer_size_;  // elements
  std::vector<T> keys_, values_;
};

static_assert(slot_store<host_store<float>>);

}  // namespace adore
