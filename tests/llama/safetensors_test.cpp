// SPDX-License-Identifier: Apache-2.0
// Files of tensors: what is written is read again, also by the format's own implementation; what is
// damaged is refused by one sentence that names the file.
#include "llama/safetensors.hpp"

#include "llama/tiny_model.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using llama_example::element_type;
using llama_example::from_floats;
using llama_example::from_numbers;
using llama_example::read_safetensors;
using llama_example::stored_tensor;
using llama_example::tensor_file;
using llama_example::to_floats;
using llama_example::write_safetensors;
using llama_example::testing::content_of;
using llama_example::testing::temporary_folder;
using llama_example::testing::write_content;
using namespace std::string_view_literals;

/// By Python's safetensors 0.8.0:
///   save({"weight": np.array([[1.5, -2, 0.25]], np.float32), "half": np.array([0.5, -65504],
///         np.float16), "ids": np.array([7, -1], np.int32), "bits": np.array([255, 0, 3],
///         np.uint8)},
///        {"model": "tiny"})
constexpr std::string_view by_python =
    "\x10\x01\0\0\0\0\0\0"
    "{\"__metadata__\":{\"model\":\"tiny\"},"
    "\"weight\":{\"dtype\":\"F32\",\"shape\":[1,3],\"data_offsets\":[0,12]},"
    "\"ids\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[12,20]},"
    "\"half\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[20,24]},"
    "\"bits\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[24,27]}}      "
    "\0\0\xc0?\0\0\0\xc0\0\0\x80>\x07\0\0\0\xff\xff\xff\xff\0"
    "8\xff\xfb\xff\0\x03"sv;

std::string file_of(std::string const& header, std::string const& data) {
  std::uint64_t const length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

std::string entry(std::string const& type, std::string const& shape, std::string const& offsets) {
  return R"({"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// The sentence by which a file of these bytes is refused, or nothing if it is not.
std::string refusal(std::string_view bytes) {
  temporary_folder const folder;
  std::string const path = folder.file("tensors.safetensors");
  write_content(path, bytes);
  try {
    read_safetensors(path);
  } catch (std::runtime_error const& error) {
    std::string const sentence = error.what();
    CHECK(sentence.starts_with("safetensors file " + path + ": "));
    CHECK(sentence.find('\n') == std::string::npos);
    return sentence;
  }
  return {};
}

void check_refused(std::string_view bytes, std::vector<std::string> const& parts) {
  std::string const sentence = refusal(bytes);
  CAPTURE(sentence);
  for (std::string const& part : parts) {
    CAPTURE(part);
    CHECK(sentence.find(part) != std::string::npos);
  }
}

void check_refused(std::string const& tensors, std::size_t bytes, std::string const& part) {
  check_refused(file_of("{" + tensors + "}", std::string(bytes, 'x')), {part});
}

template <class T>
std::vector<T> numbers_of(stored_tensor const& tensor) {
  std::vector<T> numbers(tensor.data.size() / sizeof(T));
  std::memcpy(numbers.data(), tensor.data.data(), tensor.data.size());
  return numbers;
}

}  // namespace

TEST_CASE("a safetensors file by Python is read") {
  temporary_folder const folder;
  write_content(folder.file("python.safetensors"), by_python);
  tensor_file const content = read_safetensors(folder.file("python.safetensors"));
  CHECK(content.metadata == std::map<std::string, std::string>{{"model", "tiny"}});
  REQUIRE(content.tensors.size() == 4);
  stored_tensor const& weight = content.tensors.at("weight");
  CHECK(weight.shape == std::vector<std::int64_t>{1, 3});
  CHECK(to_floats(weight) == std::vector<float>{1.5F, -2.0F, 0.25F});
  CHECK(to_floats(content.tensors.at("half")) == std::vector<float>{0.5F, -65504.0F});
  CHECK(numbers_of<std::int32_t>(content.tensors.at("ids")) == std::vector<std::int32_t>{7, -1});
  CHECK(numbers_of<std::uint8_t>(content.tensors.at("bits")) ==
        std::vector<std::uint8_t>{255, 0, 3});
  CHECK_THROWS_AS(to_floats(content.tensors.at("ids")), std::invalid_argument);
}

TEST_CASE("a safetensors file that is written is read again") {
  temporary_folder const folder;
  std::string const path = folder.file("written.safetensors");
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> floats;
  for (int i = 0; i < 35; ++i) floats.push_back(normal(random));
  tensor_file written;
  written.metadata = {{"text", "umlaut \xc3\xa4, quote \", line\n"}, {"empty", ""}};
  written.tensors["whole"] = from_floats(floats, {5, 7}, element_type::float32);
  written.tensors["half"] = from_floats(floats, {35}, element_type::float16);
  written.tensors["number"] = from_numbers(std::vector<std::int32_t>{-5}, {});
  written.tensors["odd bytes"] = from_numbers(std::vector<std::uint8_t>{1, 2, 3}, {3, 1});
  written.tensors["nothing"] = from_floats({}, {0, 9}, element_type::float32);
  write_safetensors(path, written);
  tensor_file const found = read_safetensors(path);
  CHECK(found.metadata == written.metadata);
  REQUIRE(found.tensors.size() == written.tensors.size());
  for (auto const& [name, tensor] : written.tensors) {
    CAPTURE(name);
    CHECK(found.tensors.at(name).type == tensor.type);
    CHECK(found.tensors.at(name).shape == tensor.shape);
    CHECK(found.tensors.at(name).data == tensor.data);
  }
  CHECK(to_floats(found.tensors.at("whole")) == floats);
  std::vector<float> const halves = to_floats(found.tensors.at("half"));
  for (std::size_t i = 0; i < floats.size(); ++i) {
    CHECK(halves[i] == doctest::Approx(floats[i]).epsilon(1.0 / 2048.0));  // 11 bits
  }
  // the header is padded so that the data are aligned
  std::uint64_t length = 0;
  std::memcpy(&length, content_of(path).data(), sizeof length);
  CHECK(length % 8 == 0);
}

TEST_CASE("a safetensors file that is cut anywhere is refused") {
  for (std::size_t size = 0; size < by_python.size(); ++size) {
    CAPTURE(size);
    check_refused(by_python.substr(0, size), {"is cut short"});
  }
  check_refused(std::string(by_python) + "x", {"too many bytes", "need 27", "there are 28"});
  temporary_folder const folder;
  CHECK_THROWS_WITH(read_safetensors(folder.file("missing")),
                    doctest::Contains(folder.file("missing").c_str()));
}

TEST_CASE("a safetensors file with a damaged header is refused") {
  check_refused(file_of("[]", ""), {"offset 8", "JSON object"});
  check_refused(file_of("{\"a\":", ""), {"offset 8", "JSON object"});
  check_refused(file_of(R"({"__metadata__":{"k":1}})", ""), {"\"k\"", "string"});
  check_refused(file_of(R"({"__metadata__":[]})", ""), {"__metadata__"});
  check_refused("\xff\xff\xff\xff\xff\xff\xff\xff{}"sv, {"header", "18446744073709551615"});
  check_refused(R"("a":1)", 0, "\"a\" lacks the list \"shape\"");
  check_refused(R"("a":{"dtype":"F32","shape":[1]})", 4, "lacks the list \"data_offsets\"");
  check_refused(R"("a":{"shape":[1],"data_offsets":[0,4]})", 4, "dtype null");
  check_refused("\"a\":" + entry("BF16", "[2]", "[0,4]"), 4, "dtype \"BF16\"");
  check_refused("\"a\":" + entry("F32", "[-1]", "[0,4]"), 4, "-1");
  check_refused("\"a\":" + entry("F32", "[1.5]", "[0,4]"), 4, "1.5");
  check_refused("\"a\":" + entry("F32", "[1]", "[4,0]"), 4, "data_offsets [4,0]");
  check_refused("\"a\":" + entry("F32", "[1]", "[0,4,4]"), 4, "data_offsets [0,4,4]");
  check_refused("\"a\":" + entry("F32", "[2]", "[0,4]"), 4, "has 4 bytes, 8 are expected");
  check_refused("\"a\":" + entry("U8", "[4294967296,4294967296]", "[0,4]"), 4, "too few");
  std::string const first = "\"a\":" + entry("F32", "[1]", "[0,4]") + ",\"b\":";
  check_refused(first + entry("F32", "[1]", "[2,6]"), 6, "they overlap");
  check_refused(first + entry("F32", "[1]", "[5,9]"), 9, "begins at byte 5 of the data, 4 is");
  check_refused(first + entry("F32", "[1]", "[4,8]"), 7, "need 8 bytes of data, there are 7");
}

TEST_CASE("random damage of a safetensors file is refused or read, never worse") {
  std::mt19937 random(2);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(by_python);
    bytes[std::uniform_int_distribution<std::size_t>(0, bytes.size() - 1)(random)] =
        static_cast<char>(std::uniform_int_distribution<int>(0, 255)(random));
    refused += refusal(bytes).empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}

TEST_CASE("a tensor whose data do not fit its shape is not written") {
  temporary_folder const folder;
  tensor_file content;
  content.tensors["weight"] =
      from_floats(std::vector<float>{1.0F, 2.0F}, {3}, element_type::float32);
  CHECK_THROWS_WITH_AS(write_safetensors(folder.file("wrong"), content),
                       doctest::Contains("\"weight\""),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(write_safetensors(folder.file("no folder/file"), {}),
                       doctest::Contains("no folder"),
                       std::runtime_error);
}
