// SPDX-License-Identifier: Apache-2.0
// A cache in a struct of arrays: each channel of all keys has an array of its own. Not one function
// of the library knows that; four strides say it.
#include "arrays.hpp"

#include <adore/adore.hpp>
#include <adore/testing/store_contract.hpp>

#include <array>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

namespace {

struct kv_arrays {
  explicit kv_arrays(adore::kv_shape const& s)
      : shape(s),
        keys(size_of(s)),
        values(size_of(s)),
        texts(static_cast<std::size_t>(s.sequences)) {}

  adore::kv_shape shape;
  std::vector<float> keys, values;  // [layer, channel, sequence, kv_head, slot]
  std::vector<int> texts;           // [sequence] what else an engine keeps beside

  float* key(int layer, int channel) { return keys.data() + at(layer, channel); }
  float* value(int layer, int channel) { return values.data() + at(layer, channel); }

 private:
  static std::size_t size_of(adore::kv_shape const& s) {
    return static_cast<std::size_t>(s.layers * s.channels * s.sequences * s.kv_heads * s.slots);
  }
  std::ptrdiff_t at(int layer, int channel) const {
    return std::ptrdiff_t{layer * shape.channels + channel} * shape.sequences * shape.kv_heads *
           shape.slots;
  }
};

}  // namespace

int main() {
  std::vector<std::unique_ptr<kv_arrays>> engines;  // the test asks for several stores
  try {
    adore::testing::check_store([&](adore::kv_shape const& shape) {
      engines.push_back(std::make_unique<kv_arrays>(shape));
      return engine::arrays_store(*engines.back());
    });
  } catch (std::exception const& error) {
    std::printf("wrong: %s\n", error.what());
    return 1;
  }

  kv_arrays own({.slots = 3, .channels = 2});
  adore::kv_cache cache{engine::arrays_store(own), adore::sliding_window{.size = 2}};
  cache.open(0);
  for (int token = 0; token < 4; ++token) {
    std::array<float, 2> const one{static_cast<float>(token), static_cast<float>(10 * token)};
    cache.begin_step();
    cache.append(0, {one.data(), 1, 1, 2}, {one.data(), 1, 1, 2});
    cache.end_step();
  }
  // the fourth token has the slot of the first; first all first channels, then all second ones
  bool const there = own.keys == std::vector<float>{3, 1, 2, 30, 10, 20};
  std::puts(there ? "arrays keep the contract" : "wrong: the arrays hold other keys");
  return there ? 0 : 1;
}
