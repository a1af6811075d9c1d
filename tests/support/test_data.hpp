// SPDX-License-Identifier: Apache-2.0
// Files that tests may use but that are not part of the project, and how a test says that one is
// missing: CTest then reports "Skipped" instead of "Passed".
//
//   TEST_CASE("perplexity of the small model") {
//     auto const model = adore::testing::test_data("models/stories260K.bin");
//     if (!model) return adore::testing::skip("no models/stories260K.bin");
//     ...
#pragma once

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

namespace adore::testing {

inline std::optional<std::filesystem::path> existing_file(std::filesystem::path const& path) {
  if (path.empty() || !std::filesystem::exists(path)) return std::nullopt;
  return path;
}

/// A file under the folder named by the environment variable ADORE_TEST_DATA.
inline std::optional<std::filesystem::path> test_data(std::string_view name) {
  char const* const folder = std::getenv("ADORE_TEST_DATA");
  if (folder == nullptr || *folder == '\0') return std::nullopt;
  return existing_file(std::filesystem::path(folder) / name);
}

/// The GGUF model named by the environment variable ADORE_TEST_MODEL.
inline std::optional<std::filesystem::path> test_model() {
  char const* const file = std::getenv("ADORE_TEST_MODEL");
  return existing_file(file == nullptr ? "" : file);
}

/// Says why the running case does nothing; return right after it. The words are those that
/// tests/CMakeLists.txt gives to CTest.
inline void skip(std::string_view reason) {
  std::cout << "adore test skipped: " << reason << std::endl;
}

}  // namespace adore::testing
