// SPDX-License-Identifier: Apache-2.0
// The files between gathering labels and training: one with the labels, one with the embeddings.
#pragma once

#include "labels.hpp"
#include "llama/model.hpp"
#include "llama/safetensors.hpp"

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace controller_labels {

/// A label file: tokens I32 [sequence, token]; queries I32 [sequence, query]; labels U8 [sequence,
/// output, query, byte] as `crop_labels::sets` packs them; attention and mass F16 [sequence,
/// output, query, token], if they are wanted. All sequences have the same length and number of
/// queries.
class label_file {
 public:
  explicit label_file(label_options const& options) : options_(options) {}

  /// @throws std::invalid_argument if its shape is not that of the sequences before
  void add(std::span<std::int32_t const> tokens, crop_labels const& labels);

  /// Kind, k, horizon, outputs and mass_factor are added to the metadata.
  /// @throws std::runtime_error if the file cannot be written
  void write(std::string const& path, std::map<std::string, std::string> metadata);

 private:
  void append(std::string const& name, llama_example::stored_tensor const& sequence);

  label_options options_;
  llama_example::tensor_file content_;
};

/// embeddings F16 [vocabulary, width] of a model.
void write_embeddings(std::string const& path, llama_example::model const& model);

}  // namespace controller_labels
