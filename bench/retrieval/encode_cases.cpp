// SPDX-License-Identifier: Apache-2.0
// Writes the tokens of line retrieval cases, for fine_tune.py and label_lines.py:
//
//     encode_cases MODEL CASES.jsonl OUT.jsonl
//
// One JSON object per case: "prompt" and "answer" (the asked line), token ids; "ends", the byte of
// the prompt behind each of its tokens. Prompt and answer are encoded apart, as a comparison has
// them: the answer's tokens come one by one.
#include "retrieval_cases.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
  if (count != 4) {
    std::fprintf(stderr, "usage: encode_cases MODEL CASES.jsonl OUT.jsonl\n");
    return 2;
  }
  llama_example::vocabulary const vocabulary(arguments[1]);
  std::ofstream out(arguments[3]);
  for (auto const& one : comparison::read_retrieval_cases(arguments[2], vocabulary, 0)) {
    if (one.answer.empty()) throw std::runtime_error("a case lacks its \"correct_line\"");
    std::vector<std::size_t> ends;
    for (std::int32_t const token : one.prompt) {
      ends.push_back((ends.empty() ? 0 : ends.back()) + vocabulary.decode(token).size());
    }
    nlohmann::json const entry{{"prompt", one.prompt}, {"ends", ends}, {"answer", one.answer}};
    out << entry.dump() << '\n';
  }
  if (!out.flush()) throw std::runtime_error(std::string(arguments[3]) + " cannot be written");
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "encode_cases: %s\n", error.what());
  return 2;
}
