// SPDX-License-Identifier: Apache-2.0
// How far the logits of the plug-in are from those of a cache that lost nothing.
#pragma once

#include "loaded_model.hpp"
#include "never_released.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

namespace llama_cpp_example::testing {

inline double difference(std::span<float const> a, std::span<float const> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const apart = std::abs(double{a[i]} - double{b[i]});
    REQUIRE(std::isfinite(apart));
    largest = std::max(largest, apart);
  }
  return largest;
}

struct distance_to_full {
  /// Of logits, from a never-released cache in batches of the same length.
  double same_shape = 0.0;
  double own_noise = 0.0;  ///< of that cache from itself in batches of the new tokens alone
  std::size_t rebuilt = 0;
};

/// Runs a text beside llama.cpp with nothing released.
inline distance_to_full compare_with_full(llama_model* model,
                                          decoder_options const& options,
                                          tokens_t const& text) {
  decoder engine(model, options);
  never_released full(model, options, options.chunk + options.rebuild.count);
  never_released alone(model, options, options.chunk);
  distance_to_full found;
  auto const chunk = static_cast<std::size_t>(options.chunk);
  for (std::size_t begin = 0; begin < text.size(); begin += chunk) {
    auto const part = std::span(text).subspan(begin, std::min(chunk, text.size() - begin));
    std::size_t const before = engine.rebuilt();
    auto const logits = engine.feed(part);
    auto const wanted = full.step(part, static_cast<adore::index_t>(engine.rebuilt() - before));
    found.same_shape = std::max(found.same_shape, difference(logits, wanted));
    found.own_noise = std::max(found.own_noise, difference(alone.step(part, 0), wanted));
  }
  found.rebuilt = engine.rebuilt();
  return found;
}

}  // namespace llama_cpp_example::testing
