// SPDX-License-Identifier: Apache-2.0
#include "retrieval_cases.hpp"

#include <nlohmann/json.hpp>

#include <charconv>
#include <cstddef>
#include <fstream>
#include <stdexcept>

namespace comparison {

std::vector<retrieval_case> read_retrieval_cases(std::string const& path,
                                                 llama_example::vocabulary const& vocabulary,
                                                 int count) {
  std::ifstream file(path);
  std::vector<retrieval_case> cases;
  std::string line;
  for (int number = 1; (count == 0 || number <= count) && std::getline(file, line); ++number) {
    auto const entry = nlohmann::json::parse(line, nullptr, false);
    bool const is_case = entry.is_object() && entry.contains("prompt") &&
                         entry["prompt"].is_string() && entry.contains("expected_number") &&
                         entry["expected_number"].is_number_integer();
    retrieval_case read;
    if (is_case) {
      read.prompt = vocabulary.encode(entry["prompt"].get<std::string>());
      read.expected = entry["expected_number"].get<long>();
      if (entry.contains("correct_line") && entry["correct_line"].is_string()) {
        read.answer = vocabulary.encode(entry["correct_line"].get<std::string>());
      }
    }
    if (read.prompt.empty()) {
      throw std::runtime_error(path + " line " + std::to_string(number) +
                               R"( is no JSON object with a "prompt" and an "expected_number")");
    }
    cases.push_back(std::move(read));
  }
  if (!file.is_open() || file.bad() || cases.empty()) {
    throw std::runtime_error(path + " cannot be read, or has no cases");
  }
  return cases;
}

std::optional<long> first_number(std::string_view text) {
  std::size_t const begin = text.find_first_of("0123456789");
  if (begin == std::string_view::npos) return std::nullopt;
  long number = 0;
  auto const read = std::from_chars(text.data() + begin, text.data() + text.size(), number);
  return read.ec == std::errc{} ? std::optional(number) : std::nullopt;
}

}  // namespace comparison
