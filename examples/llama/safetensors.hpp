// SPDX-License-Identifier: Apache-2.0
// Files of named tensors in the safetensors format, as PyTorch programs read and write them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace llama_example {

enum class element_type { float32, float16, int32, uint8 };

/// Row-major, little-endian.
struct stored_tensor {
  element_type type = element_type::float32;
  std::vector<std::int64_t> shape;  ///< empty: one number
  std::vector<std::byte> data;
};

struct tensor_file {
  std::map<std::string, std::string> metadata;
  std::map<std::string, stored_tensor> tensors;
};

/// @throws std::runtime_error naming the file, the tensor or offset, what was found and what was
///         expected: cut short, not JSON, an element type other than the four above, data that do
///         not fit the shape, overlap, leave gaps or bytes at the end
/// Source: the format's description, github.com/huggingface/safetensors, README.
tensor_file read_safetensors(std::string const& path);

/// @throws std::invalid_argument naming a tensor whose data do not fit its shape
/// @throws std::runtime_error naming a file that cannot be written
void write_safetensors(std::string const& path, tensor_file const& content);

/// The numbers of a float32 or float16 tensor.
/// @throws std::invalid_argument if it has another type
std::vector<float> to_floats(stored_tensor const& tensor);

/// @param type  float32 or float16, to which the numbers are rounded
stored_tensor from_floats(std::span<float const> numbers,
                          std::vector<std::int64_t> shape,
                          element_type type);
stored_tensor from_numbers(std::span<std::int32_t const> numbers, std::vector<std::int64_t> shape);
stored_tensor from_numbers(std::span<std::uint8_t const> numbers, std::vector<std::int64_t> shape);

}  // namespace llama_example
