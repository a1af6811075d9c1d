// SPDX-License-Identifier: Apache-2.0
// The library works in the engine's own memory. Three engines lay out keys and values differently:
//   1. behind a raw pointer, contiguous [kv_head, slot, channel];
//   2. in one buffer: keys [slot, kv_head, channel], values transposed [kv_head, channel, slot];
//   3. in tensors of a class that the library has never seen.
// Look at `adore_kv_view` at the end of namespace `engine`: that one function is the whole adapter.
// All three give the same output to the last bit, because sums run in the order of positions,
// wherever the tokens lie.
#include <adore/adore.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

constexpr adore::index_t kv_heads = 2, slots = 9, channels = 4;
constexpr adore::index_t token_size = kv_heads * channels, size = slots * token_size;  // in floats

namespace engine {

/// A handle to shared memory with a shape and strides, as in many frameworks.
struct tensor {
  std::shared_ptr<std::vector<float>> memory = std::make_shared<std::vector<float>>(size);
  std::array<int, 4> shape{1, slots, kv_heads, channels};  // [batch, slot, kv_head, channel]
  std::array<int, 4> strides{size, token_size, channels, 1};
};

/// Says how the tensor looks as keys or values; found by argument-dependent lookup.
adore::kv_view<float> adore_kv_view(tensor const& tensor) {
  auto const [sequences, slots, kv_heads, channels] = tensor.shape;
  auto const [per_sequence, per_slot, per_kv_head, per_channel] = tensor.strides;
  adore::kv_view<float> view{tensor.memory->data(), sequences, kv_heads, slots, channels};
  view.sequence_stride = per_sequence;
  view.kv_head_stride = per_kv_head;
  view.slot_stride = per_slot;
  view.channel_stride = per_channel;
  return view;
}

}  // namespace engine

/// Runs 50 tokens through a cache with a budget of 8 in the given memory; all outputs.
template <class Store>
std::vector<float> outputs_in(Store store) {
  adore::kv_cache cache{store, adore::h2o{.heavy = 4, .recent = 4}};
  cache.open(0);
  std::vector<float> query(token_size), key(token_size), value(token_size), output(token_size);
  std::vector<float> outputs;
  for (int token = 0; token < 50; ++token) {
    for (std::size_t i = 0; i < token_size; ++i) {
      float const number = static_cast<float>(token) * static_cast<float>(i + 1);
      query[i] = std::sin(number);
      key[i] = std::cos(number);
      value[i] = std::sin(number + 1.0F);
    }
    cache.begin_step();
    cache.append(0, {key.data(), 1, kv_heads, channels}, {value.data(), 1, kv_heads, channels});
    cache.attend(0, {query.data(), 1, kv_heads, channels}, {output.data(), 1, kv_heads, channels});
    cache.end_step();
    outputs.insert(outputs.end(), output.begin(), output.end());
  }
  return outputs;
}

int main() {
  std::vector<float> keys(size), values(size);
  adore::kv_view<float> const k1{keys.data(), 1, kv_heads, slots, channels};
  adore::kv_view<float> const v1{values.data(), 1, kv_heads, slots, channels};

  std::vector<float> buffer(2 * size);  // strides of [sequence, kv_head, slot, channel]
  std::array<adore::stride_t, 4> const token_by_token{size, channels, token_size, 1};
  std::array<adore::stride_t, 4> const transposed{size, channels * slots, 1, slots};
  std::span<float> const both{buffer};
  adore::kv_view<float> const k2{both.first(size), 1, kv_heads, slots, channels, token_by_token};
  adore::kv_view<float> const v2{both.last(size), 1, kv_heads, slots, channels, transposed};

  engine::tensor const k3, v3;

  auto const first = outputs_in(adore::view_store{std::vector{k1}, std::vector{v1}});
  auto const second = outputs_in(adore::view_store{std::vector{k2}, std::vector{v2}});
  auto const third = outputs_in(adore::view_store{std::vector{k3}, std::vector{v3}});

  std::printf("the last token's output, head 0, in each memory:\n");
  for (auto const& outputs : {first, second, third}) {
    float const* const last = &outputs[outputs.size() - token_size];
    std::printf("  %.9f %.9f %.9f %.9f\n", last[0], last[1], last[2], last[3]);
  }
  if (first != second || first != third) {
    std::puts("wrong: the layout of the memory should not change a bit of the output");
    return 1;
  }
  if (keys == *k3.memory) {  // the same numbers, but in another order
    std::puts("wrong: the engines should have laid out their keys differently");
    return 1;
  }
  return 0;
}
