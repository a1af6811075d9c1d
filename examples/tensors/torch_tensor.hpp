// SPDX-License-Identifier: Apache-2.0
// libtorch's tensors as keys or values of a cache.
#pragma once

#include <adore/kv_view.hpp>
#include <adore/types.hpp>

#include <ATen/ATen.h>

#include <utility>

namespace engine {

/// A handle: the tensor's memory lives as long as the store that holds it. A tensor knows its
/// element type when the program runs, a view when it is compiled: T says it.
///
/// @tparam T  float, at::Half, at::BFloat16
template <class T>
class torch_tensor {
 public:
  /// @param tensor  [sequence, kv_head, slot, channel] in host memory, with any strides
  /// @throws c10::Error if it is something else
  explicit torch_tensor(at::Tensor tensor) : tensor_(std::move(tensor)) {
    TORCH_CHECK(tensor_.dim() == 4, "K and V are [sequence, kv_head, slot, channel]");
    TORCH_CHECK(tensor_.device().is_cpu(), "the host cache cannot read memory of a device");
    TORCH_CHECK(tensor_.scalar_type() == c10::CppTypeToScalarType<T>::value,
                "the tensor's elements are of another type");
  }
  at::Tensor const& tensor() const { return tensor_; }

 private:
  at::Tensor tensor_;
};

template <class T>
adore::kv_view<T> adore_kv_view(torch_tensor<T> const& keys_or_values) {
  at::Tensor const& tensor = keys_or_values.tensor();
  auto const size = [&](int dim) { return static_cast<adore::index_t>(tensor.size(dim)); };
  adore::kv_view<T> view(tensor.mutable_data_ptr<T>(), size(0), size(1), size(2), size(3));
  view.sequence_stride = tensor.stride(0);
  view.kv_head_stride = tensor.stride(1);
  view.slot_stride = tensor.stride(2);
  view.channel_stride = tensor.stride(3);
  return view;
}

}  // namespace engine
