// SPDX-License-Identifier: Apache-2.0
// Controllers with random numbers, and their tensors by name, as a file would hold them.
#pragma once

#include "adore/controller/make_weights.hpp"
#include "adore/controller/weights.hpp"

#include <cmath>
#include <cstddef>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace adore::testing {

/// Standard normal numbers, times `scale`.
inline std::vector<float> draw(std::mt19937& random, std::size_t count, float scale = 1.0F) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = scale * normal(random);
  return numbers;
}

inline controller_weights random_controller(std::mt19937& random,
                                            controller_options const& options,
                                            index_t inputs = 6,
                                            index_t hidden = 5,
                                            index_t outputs = 3) {
  controller_weights weights;
  weights.options = options;
  weights.inputs = inputs;
  weights.hidden = hidden;
  weights.outputs = outputs;
  controller_weights::tensors(
      weights, [&](std::string const&, auto& values, auto const& shape, bool needed) {
        std::size_t size = needed ? 1 : 0;
        for (index_t const length : shape) size *= static_cast<std::size_t>(length);
        // sums of about 1, where a tanh bends
        values = draw(random, size, 1.0F / std::sqrt(static_cast<float>(shape.back())));
      });
  return weights;
}

/// A file of tensors and options in memory.
struct tensor_file {
  struct tensor {
    std::vector<index_t> shape;
    std::vector<float> values;
  };
  std::map<std::string, tensor> tensors;
  std::map<std::string, std::string> texts;

  explicit tensor_file(controller_weights const& weights) {
    controller_options const& options = weights.options;
    texts = {{"gru", word_of(options.gru)},
             {"score_mode", word_of(options.mode)},
             {"position_feature", word_of(options.position)},
             {"input", word_of(options.input)},
             {"max_length", std::to_string(options.max_length)}};
    controller_weights::tensors(
        weights, [&](std::string const& name, auto const& values, auto const& shape, bool needed) {
          if (needed) tensors[name] = {shape, values};
        });
  }

  controller_weights read() const {
    return make_controller_weights(
        [&](std::string const& name) -> std::optional<named_tensor> {
          auto const found = tensors.find(name);
          if (found == tensors.end()) return std::nullopt;
          return named_tensor{found->second.shape, found->second.values};
        },
        [&](std::string const& name) -> std::optional<std::string> {
          auto const found = texts.find(name);
          if (found == texts.end()) return std::nullopt;
          return found->second;
        });
  }
};

}  // namespace adore::testing
