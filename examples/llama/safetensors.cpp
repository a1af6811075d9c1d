// SPDX-License-Identifier: Apache-2.0
// A file is: the length of its header (u64), the header (JSON: name -> dtype, shape, data_offsets),
// the data, which the offsets divide without a gap.
#include "llama/safetensors.hpp"

#include <ggml.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>

namespace llama_example {

static_assert(std::endian::native == std::endian::little, "the numbers are written as they lie");

namespace {

using nlohmann::json;

constexpr std::uint64_t longest_header = 100'000'000;  // the reference implementation's limit

struct type_description {
  element_type type;
  char const* name;
  std::size_t bytes;
};
constexpr std::array<type_description, 4> types{{{element_type::float32, "F32", 4},
                                                 {element_type::float16, "F16", 2},
                                                 {element_type::int32, "I32", 4},
                                                 {element_type::uint8, "U8", 1}}};

type_description const& describe(element_type type) {
  return *std::find_if(types.begin(), types.end(), [&](auto const& t) { return t.type == type; });
}

/// Bytes of a tensor; nothing if they cannot be counted.
std::optional<std::uint64_t> bytes_of(std::vector<std::int64_t> const& shape, std::size_t element) {
  std::uint64_t bytes = element;
  for (std::int64_t const extent : shape) {
    if (extent < 0) return std::nullopt;
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

std::string text_of(std::vector<std::int64_t> const& shape) {
  return json(shape).dump();
}

class damaged_file {
 public:
  explicit damaged_file(std::string path) : path_(std::move(path)) {}
  [[noreturn]] void refuse(std::string const& why) const {
    throw std::runtime_error("safetensors file " + path_ + ": " + why);
  }

 private:
  std::string path_;
};

struct placed_tensor {
  std::string name;
  stored_tensor tensor;
  std::uint64_t begin = 0, end = 0;  // in the data
};

/// One entry of the header.
placed_tensor placed(std::string const& name, json const& entry, damaged_file const& file) {
  auto const where = "tensor \"" + name + "\"";
  auto const counts = [&](char const* key) {
    std::vector<std::int64_t> numbers;
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_array()) {
      file.refuse(where + " lacks the list \"" + key + "\" in the header");
    }
    for (json const& number : entry[key]) {
      if (!number.is_number_unsigned() ||
          number.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
        file.refuse(where + " has " + number.dump() + " among its \"" + key +
                    "\", a count is expected");
      }
      numbers.push_back(number.get<std::int64_t>());
    }
    return numbers;
  };
  placed_tensor found;
  found.name = name;
  found.tensor.shape = counts("shape");
  auto const offsets = counts("data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    file.refuse(where + " has the data_offsets " + text_of(offsets) +
                ", a begin and an end are "
                "expected");
  }
  found.begin = static_cast<std::uint64_t>(offsets[0]);
  found.end = static_cast<std::uint64_t>(offsets[1]);
  auto const dtype = entry.contains("dtype") ? entry["dtype"] : json();
  auto const type = std::find_if(types.begin(), types.end(), [&](auto const& t) {
    return dtype.is_string() && dtype.get_ref<std::string const&>() == t.name;
  });
  if (type == types.end()) {
    file.refuse(where + " has the dtype " + dtype.dump() + ", F32, F16, I32 or U8 is expected");
  }
  found.tensor.type = type->type;
  auto const bytes = bytes_of(found.tensor.shape, type->bytes);
  if (!bytes || *bytes != found.end - found.begin) {
    file.refuse(where + ", " + type->name + " of shape " + text_of(found.tensor.shape) + ", has " +
                std::to_string(found.end - found.begin) + " bytes, " +
                (bytes ? std::to_string(*bytes) + " are expected" : "too few by far"));
  }
  return found;
}

/// The tensors of a header in the order of their data, which they have to divide among them.
std::vector<placed_tensor> placed_in_order(json const& header,
                                           std::uint64_t size,
                                           damaged_file const& file) {
  std::vector<placed_tensor> found;
  for (auto const& [name, entry] : header.items()) {
    if (name != "__metadata__") found.push_back(placed(name, entry, file));
  }
  std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t end = 0;
  for (placed_tensor const& each : found) {
    if (each.begin != end) {
      file.refuse("tensor \"" + each.name + "\" begins at byte " + std::to_string(each.begin) +
                  " of the data, " + std::to_string(end) +
                  " is expected, where the one before it "
                  "ends" +
                  (each.begin < end ? ": they overlap" : ""));
    }
    end = each.end;
  }
  if (end != size) {
    file.refuse((end > size ? "is cut short: " : "has too many bytes: ") + std::string("its ") +
                "tensors need " + std::to_string(end) + " bytes of data, there are " +
                std::to_string(size));
  }
  return found;
}

}  // namespace

tensor_file read_safetensors(std::string const& path) {
  damaged_file const file(path);
  std::error_code error;
  std::uint64_t const size = std::filesystem::file_size(path, error);
  if (error) file.refuse("cannot be read (" + error.message() + ")");
  std::ifstream in(path, std::ios::binary);
  auto const read = [&](void* to, std::uint64_t bytes, std::uint64_t offset) {
    in.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!in) {
      file.refuse("cannot be read: " + std::to_string(bytes) + " bytes are expected at offset " +
                  std::to_string(offset));
    }
  };
  std::uint64_t length = 0;
  if (size < sizeof length) {
    file.refuse(
        "is cut short: the length of its header, 8 bytes at offset 0, is expected, the "
        "file has " +
        std::to_string(size));
  }
  read(&length, sizeof length, 0);
  if (length > longest_header || length > size - sizeof length) {
    file.refuse("is cut short or no safetensors file: its header should have " +
                std::to_string(length) + " bytes from offset 8, the file has " +
                std::to_string(size));
  }
  std::string text(length, '\0');
  read(text.data(), length, sizeof length);
  json const header = json::parse(text, nullptr, false);
  if (!header.is_object()) file.refuse("its header, at offset 8, is no JSON object");

  tensor_file content;
  if (auto const metadata = header.find("__metadata__"); metadata != header.end()) {
    if (!metadata->is_object()) file.refuse("its __metadata__ is no JSON object");
    for (auto const& [key, value] : metadata->items()) {
      if (!value.is_string()) {
        file.refuse("its __metadata__ has " + value.dump() + " for \"" + key +
                    "\", a string is expected");
      }
      content.metadata[key] = value.get<std::string>();
    }
  }
  std::uint64_t const data = sizeof length + length;
  for (placed_tensor& each : placed_in_order(header, size - data, file)) {
    each.tensor.data.resize(each.end - each.begin);
    read(each.tensor.data.data(), each.end - each.begin, data + each.begin);
    content.tensors[each.name] = std::move(each.tensor);
  }
  return content;
}

void write_safetensors(std::string const& path, tensor_file const& content) {
  json header = json::object();
  if (!content.metadata.empty()) header["__metadata__"] = content.metadata;
  std::vector<stored_tensor const*> in_order;
  std::uint64_t end = 0;
  // larger elements first, so that all lie at multiples of their size, as the readers like it
  for (std::size_t const element : {std::size_t{4}, std::size_t{2}, std::size_t{1}}) {
    for (auto const& [name, tensor] : content.tensors) {
      type_description const& type = describe(tensor.type);
      if (type.bytes != element) continue;
      if (bytes_of(tensor.shape, element) != std::uint64_t{tensor.data.size()}) {
        throw std::invalid_argument("tensor \"" + name + "\", " + type.name + " of shape " +
                                    text_of(tensor.shape) + ", has " +
                                    std::to_string(tensor.data.size()) + " bytes");
      }
      header[name] = {{"dtype", type.name},
                      {"shape", tensor.shape},
                      {"data_offsets", {end, end + tensor.data.size()}}};
      end += tensor.data.size();
      in_order.push_back(&tensor);
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::uint64_t const length = text.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<char const*>(&length), sizeof length);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (stored_tensor const* const tensor : in_order) {
    out.write(reinterpret_cast<char const*>(tensor->data.data()),
              static_cast<std::streamsize>(tensor->data.size()));
  }
  if (!out.flush()) throw std::runtime_error("safetensors file " + path + ": cannot be written");
}

std::vector<float> to_floats(stored_tensor const& tensor) {
  std::vector<float> numbers(tensor.data.size() / describe(tensor.type).bytes);
  if (tensor.type == element_type::float32) {
    std::memcpy(numbers.data(), tensor.data.data(), tensor.data.size());
  } else if (tensor.type == element_type::float16) {
    ggml_fp16_to_fp32_row(reinterpret_cast<ggml_fp16_t const*>(tensor.data.data()),
                          numbers.data(),
                          static_cast<std::int64_t>(numbers.size()));
  } else {
    throw std::invalid_argument(std::string("a tensor has the type ") + describe(tensor.type).name +
                                ", F32 or F16 is expected");
  }
  return numbers;
}

namespace {

template <class T>
stored_tensor copied(std::span<T const> numbers,
                     std::vector<std::int64_t> shape,
                     element_type type) {
  auto const bytes = std::as_bytes(numbers);
  return {type, std::move(shape), {bytes.begin(), bytes.end()}};
}

}  // namespace

stored_tensor from_floats(std::span<float const> numbers,
                          std::vector<std::int64_t> shape,
                          element_type type) {
  if (type == element_type::float32) return copied(numbers, std::move(shape), type);
  if (type != element_type::float16) {
    throw std::invalid_argument(std::string("floats cannot be stored as ") + describe(type).name);
  }
  std::vector<ggml_fp16_t> rounded(numbers.size());
  ggml_fp32_to_fp16_row(numbers.data(), rounded.data(), static_cast<std::int64_t>(numbers.size()));
  return copied(std::span<ggml_fp16_t const>(rounded), std::move(shape), type);
}

stored_tensor from_numbers(std::span<std::int32_t const> numbers, std::vector<std::int64_t> shape) {
  return copied(numbers, std::move(shape), element_type::int32);
}

stored_tensor from_numbers(std::span<std::uint8_t const> numbers, std::vector<std::int64_t> shape) {
  return copied(numbers, std::move(shape), element_type::uint8);
}

}  // namespace llama_example
