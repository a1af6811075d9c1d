// SPDX-License-Identifier: Apache-2.0
#include "llama/text_file.hpp"

#include <nlohmann/json.hpp>

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace llama_example {

std::string read_text(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file.peek() != std::ifstream::traits_type::eof()) content << file.rdbuf();
  if (!file.is_open() || file.bad() || !content) throw std::runtime_error(path + " cannot be read");
  if (!path.ends_with(".jsonl")) return content.str();
  std::istringstream lines(content.str());
  std::string text;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    auto const entry = nlohmann::json::parse(line, nullptr, false);
    if (!entry.is_object() || !entry.contains("text") || !entry["text"].is_string()) {
      throw std::runtime_error(path + " line " + std::to_string(number) +
                               " is no JSON object with a \"text\"");
    }
    auto part = entry["text"].get<std::string>();
    if (part.ends_with('\n')) part.pop_back();
    text += (number == 1 ? "" : "\n") + part;
  }
  return text;
}

}  // namespace llama_example
