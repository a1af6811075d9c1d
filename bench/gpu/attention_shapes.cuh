// SPDX-License-Identifier: Apache-2.0
// The shapes at which attention is measured. bf16, 128 channels.
#pragma once

#include <adore/types.hpp>

#include <cuda_bf16.h>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::bench {

using element = __nv_bfloat16;
constexpr int channels = 128;

struct shape {
  index_t sequences, heads, kv_heads, slots;
  std::size_t layer_elements() const {
    return static_cast<std::size_t>(sequences) * static_cast<std::size_t>(kv_heads) *
           static_cast<std::size_t>(slots) * channels;
  }
  std::size_t layer_bytes() const { return 2 * layer_elements() * sizeof(element); }
  /// Layers in the cache: together far more than L2 holds.
  index_t layers() const {
    return static_cast<index_t>(std::clamp<std::size_t>(2'000'000'000 / layer_bytes(), 2, 128));
  }
  std::string name() const {
    return std::to_string(sequences) + "x" + std::to_string(heads) + "/" +
           std::to_string(kv_heads) + "x" + std::to_string(slots);
  }
};

inline constexpr shape attention_shapes[] = {{64, 32, 32, 193},
                                             {64, 32, 32, 200},
                                             {64, 32, 8, 200},
                                             {64, 32, 32, 1024},
                                             {64, 32, 8, 1024},
                                             {64, 32, 32, 4096},
                                             {64, 32, 8, 4096},
                                             {64, 64, 8, 1024},
                                             {16, 32, 8, 4096},
                                             {4, 32, 8, 8192},
                                             {1, 32, 8, 200},
                                             {1, 32, 8, 1024},
                                             {1, 32, 8, 4096},
                                             {1, 32, 8, 32768},
                                             {1, 64, 8, 32768},
                                             {1, 4, 1, 32768}};

/// Those named behind the program's options, such as 64x128/8x1024, or all of the above. After
/// `benchmark::Initialize`, which takes the options away.
///
/// @throws std::invalid_argument naming what is no shape
inline std::vector<shape> chosen_shapes(int argc, char const* const* argv) {
  std::vector<shape> chosen;
  for (int i = 1; i < argc; ++i) {
    shape s{};
    int end = 0;
    int const found =
        std::sscanf(argv[i], "%dx%d/%dx%d%n", &s.sequences, &s.heads, &s.kv_heads, &s.slots, &end);
    if (found != 4 || argv[i][end] != '\0' || s.sequences < 1 || s.kv_heads < 1 || s.slots < 2 ||
        s.heads < s.kv_heads || s.heads % s.kv_heads != 0) {
      throw std::invalid_argument(
          std::string(argv[i]) +
          ": not a shape, sequences x query heads/KV heads x slots, such as "
          "64x32/8x1024");
    }
    chosen.push_back(s);
  }
  if (chosen.empty()) chosen.assign(std::begin(attention_shapes), std::end(attention_shapes));
  return chosen;
}

/// Says at what rate K and V of a layer are read.
inline void report_rate(benchmark::State& state, shape const& s) {
  state.counters["TB/s"] = benchmark::Counter(static_cast<double>(s.layer_bytes()) * 1e-12,
                                              benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace adore::bench
