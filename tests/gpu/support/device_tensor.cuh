// SPDX-License-Identifier: Apache-2.0
// Random numbers in one of the element types, on the host and on the device, and a stream that ends
// with its test.
#pragma once

#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/error.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace adore::testing {

class test_stream {
 public:
  test_stream() { gpu::check(cudaStreamCreate(&stream_)); }
  test_stream(test_stream const&) = delete;
  test_stream& operator=(test_stream const&) = delete;
  ~test_stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const noexcept { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Numbers a/64 with |a| <= 255 are exact in all element types.
template <class T>
std::vector<T> random_exact(std::size_t count, std::mt19937& random) {
  std::uniform_int_distribution<int> whole(-255, 255);
  std::vector<T> data;
  data.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    data.push_back(static_cast<T>(static_cast<float>(whole(random)) / 64.0F));
  }
  return data;
}

template <class T>
double number(T const& x) {
  return static_cast<double>(static_cast<float>(x));
}

/// A vector and its copy on the device.
template <class T>
struct device_tensor {
  std::vector<T> host;
  gpu::device_buffer<T> device;

  explicit device_tensor(std::vector<T> data)
      : host(std::move(data)), device(std::span<T const>(host)) {}
  T* data() noexcept { return device.data(); }
  void fetch(cudaStream_t stream) { host = device.to_host(stream); }
};

}  // namespace adore::testing
