// SPDX-License-Identifier: Apache-2.0
// K/V in device memory, owned by the library.
#pragma once

#include "adore/gpu/device_buffer.cuh"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cstddef>

namespace adore::gpu {

/// Two contiguous arrays [layer, sequence, kv_head, slot, channel] in device memory, allocated
/// once.
///
/// Their bytes are not set: a slot is written before it is read, and no stage lets the bytes of a
/// free slot reach a result. There is no `release`, so that `adore::kv_cache`, whose stages run on
/// the host, refuses this store when it is compiled.
///
/// @tparam T  float, __half or __nv_bfloat16
/// Memory: two cudaMalloc at construction.
template <class T>
class device_store {
 public:
  using value_type = T;
  static constexpr scope finest_scope = scope::kv_head;

  /// @throws cuda_error if the device has not enough memory
  explicit device_store(kv_shape const& shape)
      : shape_(shape),
        layer_size_(
            static_cast<std::size_t>(shape.sequences) * static_cast<std::size_t>(shape.kv_heads) *
            static_cast<std::size_t>(shape.slots) * static_cast<std::size_t>(shape.channels)),
        keys_(layer_size_ * static_cast<std::size_t>(shape.layers)),
        values_(keys_.size()) {}

  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return 1; }
  kv_view<T> keys(index_t layer) noexcept { return view(keys_, layer); }
  kv_view<T> values(index_t layer) noexcept { return view(values_, layer); }
  std::size_t allocated_bytes() const noexcept { return keys_.bytes() + values_.bytes(); }

 private:
  kv_view<T> view(device_buffer<T>& data, index_t layer) noexcept {
    return {data.data() + layer_size_ * static_cast<std::size_t>(layer),
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels};
  }

  kv_shape shape_;
  std::size_t layer_size_;  // elements
  device_buffer<T> keys_, values_;
};

}  // namespace adore::gpu
