// SPDX-License-Identifier: Apache-2.0
#include "llama/controller_file.hpp"

#include "llama/safetensors.hpp"
#include <adore/controller/make_weights.hpp>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace llama_example {

adore::controller_weights read_controller(std::string const& path) {
  tensor_file const file = read_safetensors(path);
  std::map<std::string, std::vector<float>> numbers;
  for (auto const& [name, tensor] : file.tensors) numbers[name] = to_floats(tensor);
  try {
    return adore::make_controller_weights(
        [&](std::string const& name) -> std::optional<adore::named_tensor> {
          auto const found = file.tensors.find(name);
          if (found == file.tensors.end()) return std::nullopt;
          std::vector<adore::index_t> shape;
          for (std::int64_t const length : found->second.shape) {
            shape.push_back(static_cast<adore::index_t>(length));
          }
          return adore::named_tensor{shape, numbers.at(name)};
        },
        [&](std::string const& key) -> std::optional<std::string> {
          auto const found = file.metadata.find(key);
          return found == file.metadata.end() ? std::nullopt : std::optional(found->second);
        });
  } catch (std::invalid_argument const& error) {
    throw std::invalid_argument(path + ": " + error.what());
  }
}

}  // namespace llama_example
