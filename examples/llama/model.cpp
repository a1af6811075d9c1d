// SPDX-License-Identifier: Apache-2.0
// GGUF by llama.cpp's gguf.h; weights of any quantisation by ggml's own conversion to float.
#include "llama/model.hpp"

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>

namespace llama_example {

namespace {

[[noreturn]] void refuse(std::string const& path, std::string const& why) {
  throw std::runtime_error("model file " + path + ": " + why);
}

class gguf_file {
 public:
  explicit gguf_file(std::string path) : path_(std::move(path)) {
    std::error_code error;
    size_ = std::filesystem::file_size(path_, error);
    if (error) refuse(path_, "cannot be read (" + error.message() + ")");
    file_.open(path_, std::ios::binary);
    if (!file_) refuse(path_, "cannot be opened");
    ggml_log_set([](ggml_log_level, char const*, void*) {}, nullptr);  // we report by exceptions
    context_.reset(gguf_init_from_file(path_.c_str(), {.no_alloc = true, .ctx = nullptr}));
    if (!context_) refuse(path_, "is damaged or no GGUF file: its header cannot be read");
  }

  std::string text(char const* key) const {
    return gguf_get_val_str(context_.get(), typed(key, GGUF_TYPE_STRING));
  }
  int number(std::string const& key) const {
    std::uint32_t const value =
        gguf_get_val_u32(context_.get(), typed(key.c_str(), GGUF_TYPE_UINT32));
    if (value > std::uint32_t{std::numeric_limits<int>::max()}) {
      refuse(path_, "entry " + key + " = " + std::to_string(value) + " is too large");
    }
    return static_cast<int>(value);
  }
  int number_or(std::string const& key, int otherwise) const {
    return has(key) ? number(key) : otherwise;
  }
  float real(std::string const& key) const {
    return gguf_get_val_f32(context_.get(), typed(key.c_str(), GGUF_TYPE_FLOAT32));
  }
  bool has(std::string const& key) const { return gguf_find_key(context_.get(), key.c_str()) >= 0; }
  bool has_tensor(std::string const& name) const {
    return gguf_find_tensor(context_.get(), name.c_str()) >= 0;
  }

  /// A tensor as float; `rows` = 1 for a vector.
  std::vector<float> tensor(std::string const& name, int rows, int columns) {
    std::int64_t const id = gguf_find_tensor(context_.get(), name.c_str());
    if (id < 0) refuse(path_, "lacks the tensor " + name);
    std::int64_t const* const shape = gguf_get_tensor_ne(context_.get(), id);
    if (shape[0] != columns || shape[1] != rows || shape[2] != 1 || shape[3] != 1) {
      refuse(path_,
             "tensor " + name + " is [" + std::to_string(shape[1]) + ", " +
                 std::to_string(shape[0]) + "], [" + std::to_string(rows) + ", " +
                 std::to_string(columns) + "] is expected");
    }
    std::size_t const offset =
        gguf_get_data_offset(context_.get()) + gguf_get_tensor_offset(context_.get(), id);
    std::size_t const bytes = gguf_get_tensor_size(context_.get(), id);
    if (offset > size_ || bytes > size_ - offset) {
      refuse(path_,
             "is cut off: tensor " + name + " needs bytes " + std::to_string(offset) + " to " +
                 std::to_string(offset + bytes) + " of a file of " + std::to_string(size_));
    }
    std::vector<char> raw(bytes);
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(raw.data(), static_cast<std::streamsize>(bytes));
    if (!file_) refuse(path_, "cannot be read at offset " + std::to_string(offset));

    std::int64_t const count = std::int64_t{rows} * columns;
    std::vector<float> values(static_cast<std::size_t>(count));
    ggml_type const type = gguf_get_tensor_type(context_.get(), id);
    if (type == GGML_TYPE_F32) {
      std::copy_n(reinterpret_cast<float const*>(raw.data()), count, values.begin());
    } else {
      auto const convert = ggml_get_type_traits(type)->to_float;
      if (convert == nullptr) {
        refuse(path_,
               "tensor " + name + " has the type " + ggml_type_name(type) +
                   ", which cannot be turned into float");
      }
      convert(raw.data(), values.data(), count);
    }
    bool finite = true;
    for (float const value : values) finite &= std::isfinite(value);
    if (!finite) {
      refuse(path_,
             "is damaged: tensor " + name + " at offset " + std::to_string(offset) +
                 " holds numbers that are not finite");
    }
    return values;
  }

 private:
  std::int64_t typed(char const* key, gguf_type type) const {
    std::int64_t const id = gguf_find_key(context_.get(), key);
    if (id < 0) refuse(path_, std::string("lacks the entry ") + key);
    if (gguf_get_kv_type(context_.get(), id) != type) {
      refuse(path_, std::string("entry ") + key + " has another type than " + gguf_type_name(type));
    }
    return id;
  }

  struct deleter {
    void operator()(gguf_context* context) const { gguf_free(context); }
  };
  std::string path_;
  std::uintmax_t size_ = 0;
  std::unique_ptr<gguf_context, deleter> context_;
  std::ifstream file_;
};

}  // namespace

std::uint64_t model::parameters() const {
  std::uint64_t count = embedding.data.size() + head.data.size() + final_norm.size();
  for (layer_weights const& block : blocks) {
    for (matrix const* w : {&block.query,
                            &block.key,
                            &block.value,
                            &block.output,
                            &block.gate,
                            &block.up,
                            &block.down}) {
      count += w->data.size();
    }
    count += block.attention_norm.size() + block.feed_norm.size();
  }
  return count;
}

model read_model(std::string const& path) {
  gguf_file file(path);
  std::string const architecture = file.text("general.architecture");
  if (architecture != "llama") {
    refuse(path, "has the architecture " + architecture + "; this engine runs llama");
  }
  if (file.has("llama.rope.scaling.type") && file.text("llama.rope.scaling.type") != "none") {
    refuse(path,
           "scales its rotary positions (" + file.text("llama.rope.scaling.type") +
               "), which this engine does not");
  }
  if (file.has_tensor("blk.0.attn_q.bias") || file.has_tensor("blk.0.attn_output.bias")) {
    refuse(path, "has biases in its attention, which this engine leaves out");
  }
  model m;
  m.width = file.number("llama.embedding_length");
  m.layers = file.number("llama.block_count");
  m.hidden = file.number("llama.feed_forward_length");
  m.heads = file.number("llama.attention.head_count");
  m.kv_heads = file.number_or("llama.attention.head_count_kv", m.heads);
  if (m.width < 1 || m.layers < 1 || m.hidden < 1 || m.heads < 1 || m.kv_heads < 1 ||
      m.heads % m.kv_heads != 0 ||
      (m.width % m.heads != 0 && !file.has("llama.attention.key_length"))) {
    refuse(path,
           "has sizes that make no sense together: width " + std::to_string(m.width) + ", layers " +
               std::to_string(m.layers) + ", heads " + std::to_string(m.heads) + ", KV heads " +
               std::to_string(m.kv_heads));
  }
  m.channels = file.number_or("llama.attention.key_length", m.width / m.heads);
  m.rope_channels = file.number_or("llama.rope.dimension_count", m.channels);
  if (m.channels < 1 || m.channels > std::numeric_limits<int>::max() / m.heads ||
      m.rope_channels < 2 || m.rope_channels > m.channels || m.rope_channels % 2 != 0) {
    refuse(path,
           "has sizes that make no sense together: heads of " + std::to_string(m.channels) +
               " channels, of which " + std::to_string(m.rope_channels) + " are turned");
  }
  m.trained_context = file.number("llama.context_length");
  m.norm_epsilon = file.real("llama.attention.layer_norm_rms_epsilon");
  if (file.has("llama.rope.freq_base")) m.rope_base = double{file.real("llama.rope.freq_base")};
  if (!std::isfinite(m.norm_epsilon) || m.norm_epsilon < 0.0F || !std::isfinite(m.rope_base) ||
      m.rope_base <= 0.0) {
    refuse(path,
           "has an epsilon of " + std::to_string(m.norm_epsilon) + " and a rotary base of " +
               std::to_string(m.rope_base) + ", which make no sense");
  }
  if (file.has_tensor("rope_freqs.weight")) {
    m.rope_factors = file.tensor("rope_freqs.weight", 1, m.rope_channels / 2);
    for (float const factor : m.rope_factors) {
      if (factor <= 0.0F) {
        refuse(path, "is damaged: tensor rope_freqs.weight holds " + std::to_string(factor));
      }
    }
  }
  m.vocabulary = file.number("llama.vocab_size");
  if (m.vocabulary < 1) refuse(path, "has no vocabulary");

  auto const read = [&](std::string const& name, int rows, int columns) {
    return matrix{rows, columns, file.tensor(name, rows, columns)};
  };
  m.embedding = read("token_embd.weight", m.vocabulary, m.width);
  for (int l = 0; l < m.layers; ++l) {
    std::string const block = "blk." + std::to_string(l) + ".";
    int const q = m.heads * m.channels;
    int const kv = m.kv_heads * m.channels;
    m.blocks.push_back({.attention_norm = file.tensor(block + "attn_norm.weight", 1, m.width),
                        .query = read(block + "attn_q.weight", q, m.width),
                        .key = read(block + "attn_k.weight", kv, m.width),
                        .value = read(block + "attn_v.weight", kv, m.width),
                        .output = read(block + "attn_output.weight", m.width, q),
                        .feed_norm = file.tensor(block + "ffn_norm.weight", 1, m.width),
                        .gate = read(block + "ffn_gate.weight", m.hidden, m.width),
                        .up = read(block + "ffn_up.weight", m.hidden, m.width),
                        .down = read(block + "ffn_down.weight", m.width, m.hidden)});
  }
  m.final_norm = file.tensor("output_norm.weight", 1, m.width);
  if (file.has_tensor("output.weight")) m.head = read("output.weight", m.vocabulary, m.width);
  return m;
}

}  // namespace llama_example
