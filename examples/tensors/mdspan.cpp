// SPDX-License-Identifier: Apache-2.0
// A cache in std::mdspan views of memory of one's own. The compilers that this project supports do
// not have std::mdspan yet; the class below has those of its members that are used, under their
// names.
#include "mdspan.hpp"

#include <adore/adore.hpp>
#include <adore/testing/store_contract.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

/// std::mdspan<T, std::dextents<std::size_t, 4>, std::layout_stride>, in short.
template <class T>
class strided_span {
 public:
  using element_type = T;
  using sizes = std::array<std::size_t, 4>;
  static constexpr std::size_t rank() noexcept { return 4; }

  strided_span(T* data, sizes const& extents, sizes const& strides)
      : data_(data), extents_(extents), strides_(strides) {}
  std::size_t extent(std::size_t dim) const { return extents_[dim]; }
  std::size_t stride(std::size_t dim) const { return strides_[dim]; }
  T* data_handle() const { return data_; }
  T& operator()(std::size_t i, std::size_t j, std::size_t k, std::size_t l) const {
    return data_[i * strides_[0] + j * strides_[1] + k * strides_[2] + l * strides_[3]];
  }

 private:
  T* data_;
  sizes extents_, strides_;
};

/// All K and V of an engine in one buffer [slot, layer, K and V, sequence, kv_head, channel].
struct buffer {
  adore::kv_shape shape;
  std::vector<float> memory = std::vector<float>(static_cast<std::size_t>(
      2 * shape.slots * shape.layers * shape.sequences * shape.kv_heads * shape.channels));

  engine::kv_mdspan<strided_span<float>> span(int layer, int which) {
    auto const sequences = static_cast<std::size_t>(shape.sequences);
    auto const kv_heads = static_cast<std::size_t>(shape.kv_heads);
    auto const channels = static_cast<std::size_t>(shape.channels);
    std::size_t const token = sequences * kv_heads * channels;
    std::size_t const slot = 2 * static_cast<std::size_t>(shape.layers) * token;
    return {{memory.data() + static_cast<std::size_t>(2 * layer + which) * token,
             {sequences, kv_heads, static_cast<std::size_t>(shape.slots), channels},
             {kv_heads * channels, channels, slot, 1}}};
  }
  auto store() {
    std::vector<engine::kv_mdspan<strided_span<float>>> keys, values;
    for (int layer = 0; layer < shape.layers; ++layer) {
      keys.push_back(span(layer, 0));
      values.push_back(span(layer, 1));
    }
    return adore::view_store(keys, values);
  }
};

}  // namespace

int main() {
  std::vector<buffer> buffers;  // the test asks for several stores, and views own nothing
  buffers.reserve(100);
  try {
    adore::testing::check_store([&](adore::kv_shape const& shape) {
      buffers.push_back({.shape = shape});
      return buffers.back().store();
    });
  } catch (std::exception const& error) {
    std::printf("wrong: %s\n", error.what());
    return 1;
  }

  buffer own{.shape = {.slots = 3, .channels = 2}};
  adore::kv_cache cache{own.store(), adore::sliding_window{.size = 2}};
  cache.open(0);
  for (int token = 0; token < 4; ++token) {
    std::array<float, 2> const one{static_cast<float>(token), static_cast<float>(10 * token)};
    cache.begin_step();
    cache.append(0, {one.data(), 1, 1, 2}, {one.data(), 1, 1, 2});
    cache.end_step();
  }
  auto const keys = own.span(0, 0).span;  // the fourth token has the slot of the first
  bool const there =
      keys(0, 0, 0, 1) == 30.0F && keys(0, 0, 1, 1) == 10.0F && keys(0, 0, 2, 0) == 2.0F;
  std::puts(there ? "spans keep the contract" : "wrong: the buffer holds other keys");
  return there ? 0 : 1;
}
