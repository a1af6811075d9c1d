// SPDX-License-Identifier: Apache-2.0
// Models that the plug-in cannot serve are refused by a sentence, from metadata alone.
#include "llama_cpp/model_check.hpp"

#include "loaded_model.hpp"
#include "support/complaint.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <filesystem>
#include <string>

namespace {

using namespace llama_cpp_example;
using namespace llama_cpp_example::testing;
using adore::testing::check_contains;
using adore::testing::complaint_of;

std::string complaint_about(std::string const& path) {
  return complaint_of([&] { require_supported(path); });
}

/// The metadata of a small model of some architecture, and not one tensor.
tiny_model metadata(std::string const& architecture) {
  tiny_model model;
  auto const llama = model.entries;
  model.entries.clear();
  model.tensors.clear();
  for (auto const& [key, value] : llama) {
    model.entries[key.starts_with("llama.") ? architecture + key.substr(5) : key] = value;
  }
  model.entries["general.architecture"] = architecture;
  model.entries["tokenizer.ggml.model"] = std::string("no_vocab");
  return model;
}
std::string complaint_about(tiny_model const& model) {
  temporary_folder const folder;
  model.write(folder.file("other.gguf"));
  return complaint_about(folder.file("other.gguf"));
}

}  // namespace

TEST_CASE("a plain model is accepted without its weights") {
  loaded_model const model;
  CHECK(complaint_about(model.path) == "");
  CHECK(complaint_about(metadata("llama")) == "");
  CHECK(complaint_about(metadata("qwen2")) == "");
  std::filesystem::resize_file(model.path, std::filesystem::file_size(model.path) / 2);
  CHECK(complaint_about(model.path) == "");  // the loader will find that data are missing
}

TEST_CASE("models with another kind of cache are refused by name") {
  tiny_model window = metadata("gemma2");
  window.entries["gemma2.attention.sliding_window"] = std::uint32_t{16};
  check_contains(complaint_about(window), "sliding-window layers");

  tiny_model recurrent = metadata("mamba");
  for (char const* key : {"conv_kernel", "inner_size", "state_size", "time_step_rank"}) {
    recurrent.entries[std::string("mamba.ssm.") + key] = std::uint32_t{4};
  }
  recurrent.entries["mamba.ssm.inner_size"] = std::uint32_t{64};  // twice the width
  check_contains(complaint_about(recurrent), "is recurrent");

  tiny_model hybrid = metadata("falcon-h1");
  for (char const* key :
       {"conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count"}) {
    hybrid.entries[std::string("falcon-h1.ssm.") + key] = std::uint32_t{4};
  }
  check_contains(complaint_about(hybrid), "is hybrid");

  tiny_model learned = metadata("gpt2");
  learned.entries["gpt2.attention.layer_norm_epsilon"] = 1e-5F;
  check_contains(complaint_about(learned), "no rotary positions");

  tiny_model several = metadata("qwen2vl");
  several.entries["qwen2vl.rope.dimension_sections"] = std::int32_t{1};
  check_contains(complaint_about(several), "M-RoPE");

  tiny_model encoder = metadata("t5");
  encoder.entries["t5.attention.relative_buckets_count"] = std::uint32_t{8};
  check_contains(complaint_about(encoder), "has an encoder");

  check_contains(complaint_about(metadata("martian")), "martian");
}

TEST_CASE("a file that is no model is refused by name") {
  temporary_folder const folder;
  std::string const path = folder.file("letter.gguf");
  llama_example::testing::write_content(path, "Dear reader,");
  check_contains(complaint_about(path), path);
  check_contains(complaint_about(path), "cannot be read as GGUF");
  check_contains(complaint_about(folder.file("nothing.gguf")), "cannot be read as GGUF");
}

TEST_CASE("weights that are not there are found missing at the start") {
  loaded_model const model;
  llama_context_params parameters = llama_context_default_params();
  parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  CHECK_THROWS_WITH_AS(
      require_readable(model.weights.get(), parameters, true),
      doctest::Contains("0 nodes SOFT_MAX are called kq_soft_max-0 (flash attention"),
      std::runtime_error);
  tiny_shape const shape;
  std::size_t const channels = std::size_t{2} * sizeof(ggml_fp16_t) *
                               static_cast<std::size_t>(shape.kv_heads * shape.channels);
  CHECK(require_readable(model.weights.get(), parameters, false) ==
        channels * static_cast<std::size_t>(shape.layers));
  parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  CHECK(require_readable(model.weights.get(), parameters, true) ==
        channels * static_cast<std::size_t>(shape.layers));
}
