// SPDX-License-Identifier: Apache-2.0
// Model files that are missing, damaged or of another kind: each is refused by one sentence that
// names the file, and none crashes the program.
#include "llama/engine.hpp"
#include "llama/tiny_model.hpp"

#include <doctest/doctest.h>
#include <ggml.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using llama_example::model;
using llama_example::read_model;
using llama_example::testing::content_of;
using llama_example::testing::temporary_folder;
using llama_example::testing::tiny_model;
using llama_example::testing::write_content;

/// The sentence by which a file is refused, or nothing if it is not.
std::string refusal(std::string const& path) {
  try {
    read_model(path);
  } catch (std::runtime_error const& error) {
    return error.what();
  }
  return {};
}

void check_refused(std::string const& path, std::string const& part) {
  std::string const sentence = refusal(path);
  CAPTURE(sentence);
  CHECK(sentence.starts_with("model file " + path + ": "));
  CHECK(sentence.find(part) != std::string::npos);
  CHECK(sentence.find('\n') == std::string::npos);
}

void check_refused(tiny_model const& changed, std::string const& part) {
  temporary_folder const folder;
  changed.write(folder.file("changed.gguf"));
  check_refused(folder.file("changed.gguf"), part);
}

/// Where the header ends and the tensors begin: gguf aligns them to 32 bytes.
std::size_t begin_of_tensors(tiny_model const& whole, std::size_t file_bytes) {
  std::size_t tensor_bytes = 0;
  for (auto const& [name, tensor] : whole.tensors) {
    tensor_bytes += (tensor.data.size() * sizeof(float) + 31) / 32 * 32;
  }
  return file_bytes - tensor_bytes;
}

/// Two tokens through a model whose numbers may be anything.
void run(model const& weights) {
  llama_example::engine engine(weights, 1);
  auto const cache = engine.make_cache("keep_all", {.tokens = 2}, engine.cache_options());
  cache->open(0, 0);
  for (std::int32_t const token : {0, weights.vocabulary - 1}) {
    llama_example::group part{.cache = cache.get(), .rows = {{0, 1, {&token, 1}}}};
    CHECK(engine.step({&part, 1}).size() == static_cast<std::size_t>(weights.vocabulary));
  }
}

}  // namespace

TEST_CASE("a model file is read as it was written") {
  tiny_model const written(
      {.layers = 3, .rope_base = 1234.0F, .tied = false, .rope_factors = true});
  temporary_folder const folder;
  written.write(folder.file("tiny.gguf"));
  model const read = read_model(folder.file("tiny.gguf"));
  CHECK(read.width == 32);
  CHECK(read.layers == 3);
  CHECK(read.heads == 4);
  CHECK(read.kv_heads == 2);
  CHECK(read.channels == 8);
  CHECK(read.hidden == 48);
  CHECK(read.vocabulary == 64);
  CHECK(read.trained_context == 256);
  CHECK(read.norm_epsilon == 1e-5F);
  CHECK(read.rope_base == 1234.0);
  CHECK(read.rope_channels == 8);
  CHECK(read.rope_factors == written.tensor("rope_freqs.weight").data);
  CHECK(read.embedding.data == written.tensor("token_embd.weight").data);
  CHECK(read.output_head().data == written.tensor("output.weight").data);
  CHECK(read.final_norm == written.tensor("output_norm.weight").data);
  REQUIRE(read.blocks.size() == 3);
  CHECK(read.blocks[2].key.rows == 16);
  CHECK(read.blocks[2].key.columns == 32);
  CHECK(read.blocks[2].key.data == written.tensor("blk.2.attn_k.weight").data);
  CHECK(read.blocks[1].feed_norm == written.tensor("blk.1.ffn_norm.weight").data);
  std::size_t numbers = 0;
  for (auto const& [name, tensor] : written.tensors) {
    if (name != "rope_freqs.weight") numbers += tensor.data.size();
  }
  CHECK(read.parameters() == numbers);
}

TEST_CASE("a file that is no model is refused") {
  temporary_folder const folder;
  std::string const path = folder.file("model.gguf");
  check_refused(path, "cannot be read");  // there is none
  write_content(path, "");
  check_refused(path, "damaged or no GGUF file");
  write_content(path, "Once upon a time there was a text file.\n");
  check_refused(path, "damaged or no GGUF file");
  write_content(path, std::string(100'000, '\0'));
  check_refused(path, "damaged or no GGUF file");
  write_content(path, "GGUF" + std::string(100'000, '\xff'));
  check_refused(path, "damaged or no GGUF file");
  std::filesystem::create_directory(folder.file("folder.gguf"));
  check_refused(folder.file("folder.gguf"), "cannot be read");
}

TEST_CASE("a truncated file is refused, wherever it ends") {
  tiny_model const whole({.layers = 1});
  temporary_folder const folder;
  std::string const path = folder.file("cut.gguf");
  whole.write(path);
  std::string const content = content_of(path);
  std::size_t const tensors = begin_of_tensors(whole, content.size());
  REQUIRE(refusal(path).empty());
  for (std::size_t size = 0; size < tensors; size += size < 64 ? 1 : 13) {
    CAPTURE(size);
    write_content(path, content.substr(0, size));
    check_refused(path, "damaged or no GGUF file");
  }
  for (std::size_t size = tensors; size < content.size(); size += 997) {
    CAPTURE(size);
    write_content(path, content.substr(0, size));
    check_refused(path, "is cut off: tensor ");
    check_refused(path, " of a file of " + std::to_string(size));
  }
  write_content(path, content.substr(0, content.size() - 1));
  check_refused(path, "is cut off: tensor ");
}

TEST_CASE("a missing entry is refused by its name") {
  for (char const* const key : {"general.architecture",
                                "llama.embedding_length",
                                "llama.block_count",
                                "llama.feed_forward_length",
                                "llama.attention.head_count",
                                "llama.attention.layer_norm_rms_epsilon",
                                "llama.context_length",
                                "llama.vocab_size"}) {
    tiny_model changed;
    REQUIRE(changed.entries.erase(key) == 1);
    check_refused(changed, std::string("lacks the entry ") + key);
  }
}

TEST_CASE("an entry of another type is refused by its name") {
  for (char const* const key : {"llama.embedding_length",
                                "llama.attention.layer_norm_rms_epsilon",
                                "llama.attention.head_count_kv",
                                "llama.rope.freq_base"}) {
    tiny_model changed;
    changed.entries[key] = std::string("32");
    check_refused(changed, std::string("entry ") + key + " has another type");
  }
}

TEST_CASE("another architecture is refused by its name") {
  tiny_model changed;
  changed.entries["general.architecture"] = std::string("mamba");
  check_refused(changed, "has the architecture mamba");
}

TEST_CASE("numbers that make no sense are refused") {
  auto const number = [](char const* key, std::uint32_t value) {
    tiny_model changed;
    changed.entries[std::string("llama.") + key] = value;
    CAPTURE(key);
    CAPTURE(value);
    check_refused(changed, "");
  };
  std::uint32_t const huge = std::numeric_limits<std::uint32_t>::max();
  for (std::uint32_t const value : {0U, 1U, 7U, 31U, 64U, 1U << 20U, 1U << 30U, huge / 2, huge}) {
    number("embedding_length", value);
    number("feed_forward_length", value);
    number("vocab_size", value == 64 ? 63 : value);
    number("attention.head_count", value);
    number("attention.key_length", value);
    number("rope.dimension_count", value);
    if (value != 1) number("block_count", value);  // the first block alone is a model
    number("attention.head_count_kv", value);
  }
  auto const real = [](char const* key, float value) {
    tiny_model changed;
    changed.entries[std::string("llama.") + key] = value;
    CAPTURE(key);
    CAPTURE(value);
    check_refused(changed, "");
  };
  float const infinite = std::numeric_limits<float>::infinity();
  for (float const value : {0.0F, -1.0F, infinite, -infinite, std::nanf("")}) {
    real("rope.freq_base", value);
    if (value != 0.0F) real("attention.layer_norm_rms_epsilon", value);
  }
}

TEST_CASE("a missing tensor is refused by its name") {
  tiny_model const whole;
  for (auto const& [name, tensor] : whole.tensors) {
    tiny_model changed = whole;
    changed.tensors.erase(name);
    check_refused(changed, "lacks the tensor " + name);
  }
}

TEST_CASE("a tensor of another shape is refused by its name and both shapes") {
  tiny_model const whole({.tied = false, .rope_factors = true});
  for (auto const& [name, tensor] : whole.tensors) {
    tiny_model changed = whole;
    changed.tensors[name].columns += 1;
    changed.tensors[name].data.resize(static_cast<std::size_t>(tensor.rows) *
                                      static_cast<std::size_t>(tensor.columns + 1));
    check_refused(changed,
                  "tensor " + name + " is [" + std::to_string(tensor.rows) + ", " +
                      std::to_string(tensor.columns + 1) + "], [" + std::to_string(tensor.rows) +
                      ", " + std::to_string(tensor.columns) + "] is expected");
  }
}

TEST_CASE("a weight that is no finite number is refused, with its tensor and offset") {
  tiny_model const whole({.tied = false, .rope_factors = true});
  for (auto const& [name, tensor] : whole.tensors) {
    for (float const bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      tiny_model changed = whole;
      changed.tensors[name].data.back() = bad;
      check_refused(changed, "is damaged: tensor " + name + " at offset ");
    }
  }
  tiny_model changed = whole;
  changed.tensors["rope_freqs.weight"].data.front() = 0.0F;
  check_refused(changed, "rope_freqs.weight");
}

TEST_CASE("flipped bits in a header are refused or harmless") {
  tiny_model const whole({.layers = 1, .tied = false, .rope_factors = true});
  temporary_folder const folder;
  std::string const path = folder.file("flipped.gguf");
  whole.write(path);
  std::string const content = content_of(path);
  std::size_t const header = begin_of_tensors(whole, content.size());
  int refused = 0;
  int loaded = 0;
  for (unsigned seed = 0; seed < 600; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::string flipped = content;
    for (unsigned flips = 1 + seed % 3; flips > 0; --flips) {
      char& byte = flipped[random() % header];
      byte = static_cast<char>(byte ^ static_cast<char>(1U << random() % 8));
    }
    write_content(path, flipped);
    model weights;
    try {
      weights = read_model(path);
    } catch (std::runtime_error const& error) {
      CHECK(std::string(error.what()).starts_with("model file " + path + ": "));
      ++refused;
      continue;
    }
    run(weights);
    ++loaded;
  }
  CHECK(refused > 300);
  CHECK(loaded > 10);
}
