// SPDX-License-Identifier: Apache-2.0
// An array in device memory with an owner.
#pragma once

#include "adore/gpu/error.cuh"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore::gpu {

/// `size` elements of device memory, uninitialised, allocated once. Moves, never copies.
///
/// Memory: one cudaMalloc at construction, one cudaFree at the end: keep both off the step's path.
template <class T>
class device_buffer {
  static_assert(std::is_trivially_copyable_v<T>, "adore: device memory holds plain data only");

 public:
  device_buffer() = default;
  explicit device_buffer(std::size_t size) : size_(size) {
    if (size > 0) check(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)));
  }
  /// Copies `from` to the device; done when it returns.
  explicit device_buffer(std::span<T const> from) : device_buffer(from.size()) {
    if (size_ > 0) check(cudaMemcpy(data_, from.data(), bytes(), cudaMemcpyHostToDevice));
  }
  device_buffer(device_buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_buffer() { cudaFree(data_); }

  T* data() noexcept { return data_; }
  T const* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t bytes() const noexcept { return size_ * sizeof(T); }

  /// Sets every byte to `value`.
  void fill_async(int value, cudaStream_t stream) {
    if (size_ > 0) check(cudaMemsetAsync(data_, value, bytes(), stream));
  }
  /// Copies to the buffer's start. `from` must stay as it is until the stream gets there.
  ///
  /// @throws std::length_error if it does not fit
  void copy_from_async(std::span<T const> from, cudaStream_t stream) {
    if (from.size() > size_) {
      throw std::length_error("adore: device_buffer: " + std::to_string(from.size()) +
                              " elements do not fit into " + std::to_string(size_));
    }
    if (from.empty()) return;
    check(cudaMemcpyAsync(data_, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream));
  }
  /// All elements, once the stream has got here. Synchronises.
  std::vector<T> to_host(cudaStream_t stream) const {
    std::vector<T> copy(size_);
    if (size_ > 0) {
      check(cudaMemcpyAsync(copy.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream));
    }
    check(cudaStreamSynchronize(stream));
    return copy;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace adore::gpu
