// SPDX-License-Identifier: Apache-2.0
// A cache in libtorch's tensors: what it keeps and computes is what it does in the library's own
// memory, for tensors as PyTorch lays them out, for permuted ones, in float and in bfloat16; and
// the tensors themselves hold the keys afterwards.
#include "torch_tensor.hpp"

#include <adore/adore.hpp>
#include <adore/testing/store_contract.hpp>

#include <cstdio>
#include <exception>
#include <vector>

namespace {

template <class T>
auto make_store(bool slots_first) {
  return [slots_first](adore::kv_shape const& s) {
    std::vector<engine::torch_tensor<T>> keys, values;
    for (int layer = 0; layer < s.layers; ++layer) {
      for (auto* const tensors : {&keys, &values}) {
        auto const type = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
        tensors->emplace_back(
            slots_first ? at::zeros({s.slots, s.sequences, s.kv_heads, s.channels}, type)
                              .permute({1, 2, 0, 3})
                        : at::zeros({s.sequences, s.kv_heads, s.slots, s.channels}, type));
      }
    }
    return adore::view_store(keys, values);
  };
}

}  // namespace

int main() {
  try {
    adore::testing::check_store(make_store<float>(false));
    adore::testing::check_store(make_store<float>(true));
    adore::testing::check_store(make_store<at::BFloat16>(true));
  } catch (std::exception const& error) {
    std::printf("wrong: %s\n", error.what());
    return 1;
  }

  at::Tensor const keys = at::zeros({1, 1, 3, 2}), values = at::zeros({1, 1, 3, 2});
  using tensor = engine::torch_tensor<float>;
  adore::kv_cache cache{adore::view_store{std::vector{tensor{keys}}, std::vector{tensor{values}}},
                        adore::sliding_window{.size = 2}};
  cache.open(0);
  for (int token = 0; token < 4; ++token) {
    at::Tensor const one = at::full({1, 1, 2}, token, at::kFloat);
    adore::token_view<float const> const kv{one.const_data_ptr<float>(), 1, 1, 2};
    cache.begin_step();
    cache.append(0, kv, kv);
    cache.end_step();
  }
  // the fourth token has the slot of the first, and both of its channels are 3
  bool const there = at::equal(keys.sum(3), at::tensor({6.0F, 2.0F, 4.0F}).view({1, 1, 3}));
  std::puts(there ? "libtorch's tensors keep the contract" : "wrong: the tensor holds other keys");
  return there ? 0 : 1;
}
