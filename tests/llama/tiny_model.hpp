// SPDX-License-Identifier: Apache-2.0
// Small random models of architecture llama, in memory and as GGUF files: what the engine reads and
// what a test computes from are the same numbers, but share no code.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llama_example::testing {

/// Sizes of a model. No two of them are equal, so that none can stand for another unnoticed.
struct tiny_shape {
  int width = 32, layers = 2, heads = 4, kv_heads = 2, hidden = 48, vocabulary = 64;
  int channels = 8;       ///< of a head; written where it is not width / heads
  int rope_channels = 8;  ///< of them, turned; written where it is not `channels`
  float rope_base = 10000.0F;
  bool tied = true;           ///< no output.weight: the embedding serves
  bool rope_factors = false;  ///< a rope_freqs.weight
  unsigned seed = 1;
};

struct tiny_tensor {
  int rows = 0, columns = 0;  // rows = 1: a vector
  std::vector<float> data;    // [row, column]
  double at(int row, int column) const {
    return double{data[static_cast<std::size_t>(row) * static_cast<std::size_t>(columns) +
                       static_cast<std::size_t>(column)]};
  }
};

/// All entries and tensors of a file by name; a test may change them before it writes the file.
struct tiny_model {
  tiny_shape shape;
  std::map<std::string, std::variant<std::uint32_t, std::int32_t, float, std::string>> entries;
  std::map<std::string, tiny_tensor> tensors;

  explicit tiny_model(tiny_shape const& wanted = {}) : shape(wanted), random_(wanted.seed) {
    auto const number = [&](std::string const& key, int value) {
      entries["llama." + key] = static_cast<std::uint32_t>(value);
    };
    entries["general.architecture"] = std::string("llama");
    number("embedding_length", shape.width);
    number("block_count", shape.layers);
    number("feed_forward_length", shape.hidden);
    number("attention.head_count", shape.heads);
    number("attention.head_count_kv", shape.kv_heads);
    number("context_length", 256);
    number("vocab_size", shape.vocabulary);
    if (shape.channels * shape.heads != shape.width) {
      number("attention.key_length", shape.channels);
      number("attention.value_length", shape.channels);
    }
    if (shape.rope_channels != shape.channels) number("rope.dimension_count", shape.rope_channels);
    entries["llama.rope.freq_base"] = shape.rope_base;
    entries["llama.attention.layer_norm_rms_epsilon"] = 1e-5F;

    int const q = shape.heads * shape.channels;
    int const kv = shape.kv_heads * shape.channels;
    add("token_embd.weight", shape.vocabulary, shape.width, 0.0F, 1.0F);
    for (int layer = 0; layer < shape.layers; ++layer) {
      std::string const block = "blk." + std::to_string(layer) + ".";
      add(block + "attn_norm.weight", 1, shape.width, 1.0F, 0.3F);
      add(block + "attn_q.weight", q, shape.width, 0.0F, 0.5F);
      add(block + "attn_k.weight", kv, shape.width, 0.0F, 0.5F);
      add(block + "attn_v.weight", kv, shape.width, 0.0F, 0.3F);
      add(block + "attn_output.weight", shape.width, q, 0.0F, 0.3F);
      add(block + "ffn_norm.weight", 1, shape.width, 1.0F, 0.3F);
      add(block + "ffn_gate.weight", shape.hidden, shape.width, 0.0F, 0.3F);
      add(block + "ffn_up.weight", shape.hidden, shape.width, 0.0F, 0.3F);
      add(block + "ffn_down.weight", shape.width, shape.hidden, 0.0F, 0.3F);
    }
    add("output_norm.weight", 1, shape.width, 1.0F, 0.3F);
    if (!shape.tied) add("output.weight", shape.vocabulary, shape.width, 0.0F, 0.5F);
    if (shape.rope_factors) add("rope_freqs.weight", 1, shape.rope_channels / 2, 4.0F, 3.0F);
  }

  tiny_tensor const& tensor(std::string const& name) const { return tensors.at(name); }

  void write(std::filesystem::path const& path) const {
    std::unique_ptr<gguf_context, decltype(&gguf_free)> const file(gguf_init_empty(), gguf_free);
    for (auto const& [key, value] : entries) {
      if (auto const* const number = std::get_if<std::uint32_t>(&value)) {
        gguf_set_val_u32(file.get(), key.c_str(), *number);
      } else if (auto const* const whole = std::get_if<std::int32_t>(&value)) {
        gguf_set_val_i32(file.get(), key.c_str(), *whole);
      } else if (auto const* const real = std::get_if<float>(&value)) {
        gguf_set_val_f32(file.get(), key.c_str(), *real);
      } else {
        gguf_set_val_str(file.get(), key.c_str(), std::get<std::string>(value).c_str());
      }
    }
    // descriptions of the tensors only; their data stay where they are
    std::unique_ptr<ggml_context, decltype(&ggml_free)> const descriptions(
        ggml_init({.mem_size = (tensors.size() + 1) * ggml_tensor_overhead(),
                   .mem_buffer = nullptr,
                   .no_alloc = true}),
        ggml_free);
    for (auto const& [name, tensor] : tensors) {
      ggml_tensor* const described =
          tensor.rows == 1
              ? ggml_new_tensor_1d(descriptions.get(), GGML_TYPE_F32, tensor.columns)
              : ggml_new_tensor_2d(descriptions.get(), GGML_TYPE_F32, tensor.columns, tensor.rows);
      ggml_set_name(described, name.c_str());
      described->data = const_cast<float*>(tensor.data.data());
      gguf_add_tensor(file.get(), described);
    }
    if (!gguf_write_to_file(file.get(), path.c_str(), false)) {
      throw std::runtime_error("cannot write " + path.string());
    }
  }

 private:
  void add(std::string const& name, int rows, int columns, float middle, float spread) {
    std::uniform_real_distribution<float> distribution(middle - spread, middle + spread);
    tiny_tensor tensor{rows, columns, {}};
    for (int i = 0; i < rows * columns; ++i) tensor.data.push_back(distribution(random_));
    tensors[name] = std::move(tensor);
  }

  std::mt19937 random_;
};

/// A folder that is gone when the test is.
class temporary_folder {
 public:
  temporary_folder() {
    std::string name = (std::filesystem::temp_directory_path() / "adore_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder " + name);
    path_ = name;
  }
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  temporary_folder(temporary_folder const&) = delete;
  temporary_folder& operator=(temporary_folder const&) = delete;

  std::string file(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string content_of(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
inline void write_content(std::string const& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace llama_example::testing
