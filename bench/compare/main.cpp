// SPDX-License-Identifier: Apache-2.0
// Compares retention policies on a real model: see --help, and comparison.cpp for how.
#include "comparison.hpp"
#include "device.hpp"
#include "llama/blas_kernels.hpp"
#include "llama/engine.hpp"
#include "llama/text_file.hpp"
#include "llama/vocabulary.hpp"
#include "report.hpp"
#include "request.hpp"
#include "retrieval.hpp"

#include <fmt/format.h>

#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using clock_type = std::chrono::steady_clock;
double since(clock_type::time_point begin) {
  return std::chrono::duration<double>(clock_type::now() - begin).count();
}

std::string read_text(std::string const& name) try {
  return llama_example::read_text(name);
} catch (std::runtime_error const& error) {
  throw comparison::mistake{std::string("--text: ") + error.what()};
}

/// The text's first sequences x tokens tokens, [sequence][token].
std::vector<std::vector<std::int32_t>> cut(std::vector<std::int32_t> const& all,
                                           comparison::request const& asked) {
  auto const wanted =
      static_cast<std::size_t>(asked.tokens) * static_cast<std::size_t>(asked.sequences);
  if (all.size() < wanted) {
    throw comparison::mistake{fmt::format("--text: {} has {} tokens, {} x {} are asked for",
                                          asked.text,
                                          all.size(),
                                          asked.sequences,
                                          asked.tokens)};
  }
  std::vector<std::vector<std::int32_t>> sequences;
  for (std::size_t begin = 0; begin < wanted; begin += static_cast<std::size_t>(asked.tokens)) {
    auto const first = all.begin() + static_cast<std::ptrdiff_t>(begin);
    sequences.emplace_back(first, first + asked.tokens);
  }
  return sequences;
}

/// Output files are tried before the work that they are to hold.
void check_writable(std::string const& name) {
  if (name.empty()) return;
  bool const is_new = !std::filesystem::exists(name);
  if (!std::ofstream(name, std::ios::app)) throw comparison::mistake{"cannot write " + name};
  if (is_new) std::filesystem::remove(name);
}

int compare_policies(comparison::request const& asked) {
  for (std::string const& name : {asked.csv, asked.json}) check_writable(name);
  if (!asked.plot.empty()) {
    check_writable(asked.plot + ".png");
    if (!comparison::can_plot()) {
      throw comparison::mistake{
          "--plot: python3 cannot import matplotlib (Debian and Ubuntu: "
          "python3-matplotlib)"};
    }
  }
  bool const retrieves = !asked.cases.empty();
  auto const begin = clock_type::now();
  llama_example::vocabulary const vocabulary(asked.model);
  std::vector<std::vector<std::int32_t>> tokens;
  if (!retrieves) tokens = cut(vocabulary.encode(read_text(asked.text)), asked);
  llama_example::model const weights = llama_example::read_model(asked.model);
  double const loading = since(begin);

  fmt::print("{} ({:.0f} M parameters, float32{}), {}\n",
             asked.model,
             static_cast<double>(weights.parameters()) / 1e6,
             asked.on_device ? ", on the device" : "",
             retrieves ? asked.retrieval : asked.text);
  if (retrieves) {
    fmt::print("{} prompts of {} tokens on average, {} policies and budgets\n",
               asked.cases.size(),
               asked.tokens,
               asked.contestants.size());
  } else {
    fmt::print("{} sequence(s) of {} tokens, {} policies and budgets = {} rows in lock-step\n",
               tokens.size(),
               asked.tokens,
               asked.contestants.size(),
               asked.contestants.size() * tokens.size());
  }
  fmt::print("rotary positions: {}{}\n",
             adore::word_of(asked.positions),
             asked.prompt > 0 ? fmt::format("; dense prompt of {} tokens", asked.prompt) : "");
  for (std::string const& sentence : asked.left_out) fmt::print("left out: {}\n", sentence);
  fmt::print("\n");
  std::fflush(stdout);

  auto const start = clock_type::now();
  auto const report = [&](int done, int all) {
    comparison::show_progress(done, all, since(start));
  };
  std::optional<llama_example::engine> engine;
  if (!asked.on_device) engine.emplace(weights, asked.threads);
  std::vector<comparison::result> results;
  if (retrieves) {
    auto answers = engine ? comparison::retrieve(asked, *engine, report)
                          : comparison::retrieve_on_device(asked, weights, report);
    results = comparison::graded(asked, std::move(answers), vocabulary);
  } else {
    results = engine ? comparison::run(asked, *engine, tokens, report)
                     : comparison::run_on_device(asked, weights, tokens, report);
  }
  double const comparing = since(start);
  comparison::print_table(results);
  if (!asked.csv.empty()) comparison::write_csv(results, asked.csv);
  if (!asked.json.empty()) comparison::write_json(asked, results, asked.json);
  if (!asked.plot.empty()) comparison::write_plot(results, asked.plot);
  fmt::print("\n{}\n",
             retrieves
                 ? "exact: share of answers whose first number is the expected one. attended: "
                   "budget + R + 1."
                 : "ppl: perplexity, and of the second half. KL, top1: against full "
                   "attention. kept: share of full attention's weight\nthat the kept tokens "
                   "hold; attended: budget + R + 1. stage: the policy's own time per token. "
                   "tok/s: one row alone.");
  fmt::print("seconds: model and text {:.1f}, comparison {:.1f}\n", loading, comparing);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  llama_example::restart_for_wider_blas_kernels(arguments);
  std::string sentence;
  try {
    auto const asked = comparison::read_request(count, arguments);
    return asked ? compare_policies(*asked) : 0;
  } catch (comparison::mistake const& error) {
    sentence = error.sentence;
  } catch (std::exception const& error) {
    sentence = error.what();
  }
  fmt::print(stderr, "compare: {}\n", sentence);
  return 2;
}
