// SPDX-License-Identifier: Apache-2.0
// A Llama-family model read from a GGUF file: its numbers, and its weights as float.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llama_example {

/// Row-major [rows, columns]; a product is y[rows] = W x[columns].
struct matrix {
  int rows = 0, columns = 0;
  std::vector<float> data;
};

struct layer_weights {
  std::vector<float> attention_norm;  // [width]
  matrix query, key, value;      // [heads x channels, width], [kv_heads x channels, width] twice
  matrix output;                 // [width, heads x channels]
  std::vector<float> feed_norm;  // [width]
  matrix gate, up;               // [hidden, width]
  matrix down;                   // [width, hidden]
};

struct model {
  int width = 0, layers = 0, heads = 0, kv_heads = 0, channels = 0, hidden = 0, vocabulary = 0;
  int trained_context = 0;
  float norm_epsilon = 0.0F;
  double rope_base = 10000.0;
  int rope_channels = 0;
  std::vector<float> rope_factors;  // [rope_channels / 2] or empty

  matrix embedding;  // [vocabulary, width]
  std::vector<layer_weights> blocks;
  std::vector<float> final_norm;  // [width]
  matrix head;                    // [vocabulary, width]; empty: tied, the embedding serves
  matrix const& output_head() const { return head.data.empty() ? embedding : head; }
  std::uint64_t parameters() const;
};

/// Reads and dequantises a file of architecture "llama".
///
/// @throws std::runtime_error naming the file and, where it is damaged, the offset and what was
///         expected there
model read_model(std::string const& path);

}  // namespace llama_example
