// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/request.hpp"

#include "llama/policy_choice.hpp"
#include "llama/text_file.hpp"

#include <CLI/CLI.hpp>

#include <iostream>
#include <map>
#include <stdexcept>

namespace llama_cpp_example {

namespace {

std::string content_of(std::string const& name) {
  std::string text = llama_example::read_text(name);
  if (text.empty()) throw std::runtime_error("--file: " + name + " is empty");
  return text;
}

/// Takes apart what `--policy` says, and what `--rebuild` adds.
void read_policy(std::string const& text, adore::index_t rebuilt, request& asked) {
  decoder_options& how = asked.decoding;
  if (text != "none") {
    llama_example::policy_choice const chosen = llama_example::read_policy_choice(text);
    how.policy = chosen.policy;
    how.rebuild = chosen.rebuild;
    asked.controller = chosen.controller;
  }
  if (rebuilt == 0) return;
  if (rebuilt < 0) throw std::invalid_argument("--rebuild: must not be negative");
  if (how.rebuild.count > 0) {
    throw std::invalid_argument("--rebuild: --policy says already how many tokens come back");
  }
  how.rebuild.count = rebuilt;
}

}  // namespace

std::optional<request> read_request(int count, char** arguments) {
  request asked;
  decoder_options& how = asked.decoding;
  std::string file;
  bool perplexity = false;
  bool talk = false;
  std::string policy = "streaming_llm";
  adore::index_t rebuilt = 0;
  how.chunk = cell_granule;
  how.threads = 1;

  CLI::App app(
      "Runs a GGUF model of llama.cpp with a KV cache that a retention policy keeps small.\n"
      "The newest token always stays, since llama.cpp goes on after it.");
  app.add_option("--model", asked.model, "GGUF file")->required();
  app.add_option("--policy",
                 policy,
                 "name or name(field=value,...), with @FILE behind it, a controller, if it takes "
                 "scores, and +rebuild(count=8,...), if released tokens come back; none: llama.cpp "
                 "alone, for comparison")
      ->capture_default_str();
  app.add_option("--rebuild",
                 rebuilt,
                 "so many released tokens are decoded again in each step: +rebuild(count=N)")
      ->capture_default_str();
  app.add_option("--budget",
                 asked.cells,
                 "cells that a step attends, the current token and those that come back included: "
                 "the policy keeps the rest. Rounded up to llama.cpp's granule of 256 [512; "
                 "without a budget of the "
                 "policy's own: as long as the text]");
  auto* const prompt = app.add_option("--prompt", asked.text, "text to go on from");
  app.add_option(
         "--file", file, "the same from a file; of one that ends in .jsonl the \"text\" fields")
      ->excludes(prompt);
  auto* const measures =
      app.add_flag("--perplexity", perplexity, "measure the text instead of going on from it");
  app.add_flag("--interactive", talk, "answer line by line, in the model's chat format")
      ->excludes(measures);
  app.add_option("--predict", asked.predict, "tokens to write, per answer")->capture_default_str();
  app.add_option("--limit", asked.limit, "use the first tokens of the text only [all]");
  app.add_option("--chunk",
                 how.chunk,
                 "tokens of a prompt per step: the context has so many cells more, less one; 1: "
                 "token by token, in the budget's own cells")
      ->capture_default_str();
  app.add_option("--temperature", asked.temperature, "0: always the likeliest token")
      ->capture_default_str();
  app.add_option("--seed", how.seed, "of sampling, and of policies that draw");
  app.add_option("--scores-every",
                 how.scores_every,
                 "read attention weights at each n-th step only, if the policy needs any")
      ->capture_default_str();
  std::map<std::string, adore::position_scheme> const schemes{
      {"original", adore::position_scheme::original},
      {"cache_index", adore::position_scheme::cache_index}};
  app.add_option("--positions", how.positions, "rotary positions [the policy's own]")
      ->transform(CLI::CheckedTransformer(schemes));
  app.add_option("--shift-every",
                 how.shift_every,
                 "cache_index: released tokens between two shifts of all keys")
      ->capture_default_str();
  std::map<std::string, llama_flash_attn_type> const flash{{"auto", LLAMA_FLASH_ATTN_TYPE_AUTO},
                                                           {"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
                                                           {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED}};
  app.add_option("--flash-attention",
                 how.flash_attention,
                 "auto: off where weights are needed, else as llama.cpp chooses")
      ->transform(CLI::CheckedTransformer(flash));
  std::map<std::string, ggml_type> const types{
      {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}};
  app.add_option("--cache-type", how.cache_type, "of K and V [f16]")
      ->transform(CLI::CheckedTransformer(types));
  app.add_option("--threads", how.threads)->capture_default_str();
  app.add_option("--n-gpu-layers", asked.gpu_layers, "layers on devices")->capture_default_str();
  std::map<std::string, llama_split_mode> const splits{{"layer", LLAMA_SPLIT_MODE_LAYER},
                                                       {"none", LLAMA_SPLIT_MODE_NONE}};
  app.add_option(
         "--split-mode",
         asked.split,
         "several devices: layer, each has some layers, their K/V included; none, the first "
         "one has all [layer]")
      ->transform(CLI::CheckedTransformer(splits));
  app.add_option("--tensor-split",
                 asked.shares,
                 "n,... shares of the layers, device by device [as memory is free]")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  app.add_option("--rpc", asked.rpc, "host:port,... of llama.cpp's RPC servers, used as devices")
      ->delimiter(',');
  app.add_flag("--kept", asked.shows_kept, "print the positions that are kept at the end");
  try {
    app.parse(count, arguments);
  } catch (CLI::CallForHelp const&) {
    std::cout << app.help();
    return std::nullopt;
  }

  if (!file.empty()) asked.text = content_of(file);
  if (perplexity) {
    asked.what = request::task::perplexity;
    asked.predict = 0;
  }
  if (talk) asked.what = request::task::talk;
  if (asked.text.empty() && !talk) {
    throw std::invalid_argument("there is no text: give --prompt, --file or --interactive");
  }
  if (asked.shares.size() > llama_max_devices()) {
    throw std::invalid_argument("--tensor-split: llama.cpp has at most " +
                                std::to_string(llama_max_devices()) + " devices");
  }
  asked.shares.resize(asked.shares.empty() ? 0 : llama_max_devices());  // it reads so many
  read_policy(policy, rebuilt, asked);
  return asked;
}

}  // namespace llama_cpp_example
