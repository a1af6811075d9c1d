// SPDX-License-Identifier: Apache-2.0
#include "label_file.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

namespace controller_labels {

namespace {

char const* word_of(label_kind kind) {
  switch (kind) {
    case label_kind::uniform:
      return "uniform";
    case label_kind::query:
      return "query";
    default:
      return "future";
  }
}

}  // namespace

/// One sequence more: `sequence` has the shape [1, ...].
void label_file::append(std::string const& name, llama_example::stored_tensor const& sequence) {
  auto const [at, is_first] = content_.tensors.try_emplace(name, sequence);
  if (is_first) return;
  llama_example::stored_tensor& all = at->second;
  if (!std::equal(all.shape.begin() + 1,
                  all.shape.end(),
                  sequence.shape.begin() + 1,
                  sequence.shape.end())) {
    throw std::invalid_argument("label_file: a sequence has other " + name +
                                " than those before it");
  }
  ++all.shape.front();
  all.data.insert(all.data.end(), sequence.data.begin(), sequence.data.end());
}

void label_file::add(std::span<std::int32_t const> tokens, crop_labels const& labels) {
  if (tokens.size() != static_cast<std::size_t>(labels.tokens())) {
    throw std::invalid_argument("label_file: labels of " + std::to_string(labels.tokens()) +
                                " tokens for a sequence of " + std::to_string(tokens.size()));
  }
  std::int64_t const length = labels.tokens();
  std::int64_t const outputs = labels.outputs();
  auto const queries = static_cast<std::int64_t>(labels.queries().size());
  append("tokens", llama_example::from_numbers(tokens, {1, length}));
  append("queries", llama_example::from_numbers(std::span(labels.queries()), {1, queries}));
  auto const sets = labels.sets();
  append("labels",
         llama_example::from_numbers(std::span(sets), {1, outputs, queries, (length + 7) / 8}));
  auto const append_pairs = [&](std::string const& name, std::span<float const> of_pairs) {
    append(name,
           llama_example::from_floats(
               of_pairs, {1, outputs, queries, length}, llama_example::element_type::float16));
  };
  if (options_.attention) append_pairs("attention", labels.attention());
  if (!labels.mass().empty()) append_pairs("mass", labels.mass());
}

void label_file::write(std::string const& path, std::map<std::string, std::string> metadata) {
  metadata["kind"] = word_of(options_.kind);
  metadata["k"] = std::to_string(options_.k);
  metadata["horizon"] = std::to_string(options_.horizon);
  metadata["outputs"] = options_.outputs == label_outputs::model ? "model" : "layers";
  if (options_.mass_factor > 0.0F) metadata["mass_factor"] = std::to_string(options_.mass_factor);
  content_.metadata = std::move(metadata);
  llama_example::write_safetensors(path, content_);
}

void write_embeddings(std::string const& path, llama_example::model const& model) {
  llama_example::tensor_file content;
  content.tensors["embeddings"] = llama_example::from_floats(
      model.embedding.data, {model.vocabulary, model.width}, llama_example::element_type::float16);
  llama_example::write_safetensors(path, content);
}

}  // namespace controller_labels
