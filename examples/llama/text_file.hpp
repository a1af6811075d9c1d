// SPDX-License-Identifier: Apache-2.0
// Texts that the programs of bench/ read.
#pragma once

#include <string>

namespace llama_example {

/// A plain text, or the "text" fields of a file whose name ends in .jsonl, joined by newlines.
/// @throws std::runtime_error naming the file, and the line that is no JSON object with a "text"
std::string read_text(std::string const& path);

}  // namespace llama_example
