// SPDX-License-Identifier: Apache-2.0
// Gathers what a controller is trained on: runs a model with full attention over pieces of texts
// and writes which tokens it attended to. See --help, and labels.hpp for what the kinds mean.
#include "crops.hpp"
#include "device_attention.hpp"
#include "host_attention.hpp"
#include "label_file.hpp"
#include "labels.hpp"
#include "llama/blas_kernels.hpp"
#include "llama/engine.hpp"
#include "llama/text_file.hpp"
#include "llama/vocabulary.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using controller_labels::crop_labels;
using controller_labels::label_kind;
using controller_labels::label_options;
using controller_labels::label_outputs;
using controller_labels::labelled_crop;
using tokens_t = std::vector<std::int32_t>;

struct request {
  std::string model, out, embeddings;
  std::vector<std::string> texts;
  int crops = 32, tokens = 512, queries = 32, threads = 1, together = 64;
  std::uint64_t seed = 1;
  bool on_device = false;
  label_options labels;
};

void gather(request const& asked) {
  std::vector<tokens_t> texts;
  llama_example::vocabulary const vocabulary(asked.model);
  for (std::string const& text : asked.texts) {
    texts.push_back(vocabulary.encode(llama_example::read_text(text)));
  }
  auto const crops = controller_labels::choose_crops(texts, asked.tokens, asked.crops, asked.seed);
  llama_example::model const weights = llama_example::read_model(asked.model);
  controller_labels::write_embeddings(asked.embeddings, weights);

  std::optional<llama_example::engine> engine;
  std::optional<controller_labels::device_attention> device;
  if (asked.on_device) {
    device.emplace(weights);
  } else {
    engine.emplace(weights, asked.threads);
  }
  controller_labels::label_file file(asked.labels);
  auto const range = controller_labels::queries_of(asked.labels, asked.tokens);
  // the host's engine attends for the first group alone, then for the others in parallel
  auto const together = static_cast<std::size_t>(asked.on_device     ? asked.together
                                                 : asked.threads > 1 ? asked.threads + 1
                                                                     : 1);
  auto const begin = std::chrono::steady_clock::now();
  for (std::size_t first = 0; first < crops.size(); first += together) {
    std::vector<labelled_crop> running;
    for (std::size_t i = first; i < std::min(first + together, crops.size()); ++i) {
      auto queries =
          controller_labels::choose_queries(range, asked.queries, asked.seed, static_cast<int>(i));
      running.push_back(
          {crops[i], crop_labels(asked.labels, weights.layers, asked.tokens, std::move(queries))});
    }
    if (device) {
      device->show(asked.labels, running);
    } else {
      controller_labels::show_attention(*engine, running);
    }
    for (labelled_crop const& crop : running) file.add(crop.tokens, crop.labels);
    fmt::print("{} of {} sequences, {:.1f} s\n",
               first + running.size(),
               crops.size(),
               std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    std::fflush(stdout);
  }
  file.write(asked.out,
             {{"model", std::filesystem::path(asked.model).filename().string()},
              {"seed", std::to_string(asked.seed)}});
  fmt::print("{}: {} sequences of {} tokens, {} queries each\n",
             asked.out,
             asked.crops,
             asked.tokens,
             asked.queries);
}

/// Reads the command line; false if only --help was asked for.
bool read_request(int count, char** arguments, request& asked) {
  asked.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  CLI::App app{
      "Gathers the labels that bench/controller/train.py trains an ADORE controller on: runs a "
      "model "
      "with\nfull attention over pieces of texts and writes which tokens it attended to."};
  app.add_option("--model", asked.model, "GGUF file of a Llama-family model")->required();
  app.add_option("--texts",
                 asked.texts,
                 "files with plain text, or .jsonl lines whose \"text\" fields are joined")
      ->required();
  app.add_option("--out", asked.out, "label file to write (safetensors)")->required();
  app.add_option("--embeddings",
                 asked.embeddings,
                 "file for the model's embeddings; default: embeddings.safetensors beside --out");
  app.add_option("--crops", asked.crops, "pieces of the texts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--tokens", asked.tokens, "tokens of a piece")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  auto* const queries = app.add_option("--queries", asked.queries, "sampled queries of a piece")
                            ->check(CLI::PositiveNumber)
                            ->capture_default_str();
  app.add_option("--k", asked.labels.k, "tokens in a label set")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  std::map<std::string, label_kind> const kinds{{"uniform", label_kind::uniform},
                                                {"query", label_kind::query},
                                                {"future", label_kind::future}};
  app.add_option(
         "--kind",
         asked.labels.kind,
         "uniform: one set per piece, by votes of all layers and queries; query: what each\n"
         "sampled query attends to; future: what the --horizon queries after it attend to")
      ->transform(CLI::CheckedTransformer(kinds).description("WORD"))
      ->default_str("query");
  app.add_option("--horizon", asked.labels.horizon, "queries that `future` sums up")
      ->check(CLI::NonNegativeNumber)
      ->default_str("100 for future");
  std::map<std::string, label_outputs> const outputs{{"model", label_outputs::model},
                                                     {"layers", label_outputs::layers}};
  app.add_option("--outputs", asked.labels.outputs, "model: one set; layers: one for each layer")
      ->transform(CLI::CheckedTransformer(outputs).description("WORD"))
      ->default_str("model");
  app.add_option("--mass-factor",
                 asked.labels.mass_factor,
                 "also write each token's attention so far, decayed by this factor per query")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--attention",
               asked.labels.attention,
               "also write the attention that the sets are made from, for --loss of train.py and\n"
               "its figure of kept attention");
  app.add_option("--seed", asked.seed, "of the pieces and queries")->capture_default_str();
  app.add_option("--threads", asked.threads, "threads of the engine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  std::string where = "cpu";
  app.add_option("--device", where, "cpu, or cuda: the same on a GPU")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--together", asked.together, "pieces in one batch of the GPU")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  try {
    app.parse(count, arguments);
  } catch (CLI::ParseError const& error) {
    if (error.get_exit_code() == 0) return app.exit(error) != 0;  // prints the help
    throw std::invalid_argument(std::string(error.what()) + " (see --help)");
  }
  asked.on_device = where == "cuda";
  if (auto const reason = controller_labels::why_no_device(); asked.on_device && reason) {
    throw std::invalid_argument("--device cuda: " + *reason);
  }
  if (asked.labels.kind == label_kind::future && asked.labels.horizon == 0) {
    asked.labels.horizon = 100;
  }
  if (asked.labels.kind == label_kind::uniform) {
    if (queries->count() > 0 && asked.queries != 1) {
      throw std::invalid_argument("--queries: kind uniform makes one set per piece");
    }
    asked.queries = 1;
  }
  if (asked.embeddings.empty()) {
    asked.embeddings =
        (std::filesystem::path(asked.out).parent_path() / "embeddings.safetensors").string();
  }
  // what is wrong with the numbers is said before the model is read
  auto const range = controller_labels::queries_of(asked.labels, asked.tokens);
  controller_labels::choose_queries(range, asked.queries, asked.seed, 0);
  return true;
}

}  // namespace

int main(int count, char** arguments) try {
  llama_example::restart_for_wider_blas_kernels(arguments);
  request asked;
  if (read_request(count, arguments, asked)) gather(asked);
  return 0;
} catch (std::exception const& error) {
  fmt::print(stderr, "gather_labels: {}\n", error.what());
  return 2;
}
