// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>

namespace comparison {

namespace {

std::ofstream open_file(std::string const& name) {
  std::ofstream file(name);
  if (!file) throw std::runtime_error("cannot write " + name);
  return file;
}

std::string quoted(std::string const& text) {
  return text.find(',') == std::string::npos ? text : '"' + text + '"';
}

/// A word that the shell takes as it is.
std::string shell_word(std::string const& text) {
  std::string word = "'";
  for (char const letter : text) {
    if (letter == '\'') {
      word += "'\\''";
    } else {
      word += letter;
    }
  }
  return word + "'";
}

std::string budget_text(result const& line, char const* none) {
  return line.budget ? std::to_string(*line.budget) : none;
}

/// A figure that a comparison on a text has, and a retrieval has not.
std::optional<double> of_text(result const& line, double figure) {
  return line.exact_match ? std::nullopt : std::optional(figure);
}

nlohmann::json json_of(std::optional<double> figure) {
  return figure ? nlohmann::json(*figure) : nlohmann::json();
}

std::string csv_of(std::optional<double> figure, int digits) {
  return figure ? fmt::format("{:.{}g}", *figure, digits) : "";
}

std::optional<double> speed_of(result const& line) {
  return line.tokens_per_second > 0 ? std::optional(line.tokens_per_second) : std::nullopt;
}

nlohmann::json json_of(std::vector<result> const& results) {
  nlohmann::json lines = nlohmann::json::array();
  for (result const& line : results) {
    lines.push_back(
        {{"policy", line.policy},
         {"settings", line.settings},
         {"budget", line.budget ? nlohmann::json(*line.budget) : nlohmann::json()},
         {"scope", adore::word_of(line.reach)},
         {"tokens", line.tokens},
         {"perplexity", json_of(of_text(line, line.perplexity))},
         {"perplexity_second_half", json_of(of_text(line, line.perplexity_second_half))},
         {"kl", json_of(of_text(line, line.kl))},
         {"top1", json_of(of_text(line, line.top1))},
         {"kept_weight", json_of(of_text(line, line.kept_weight))},
         {"exact_match", json_of(line.exact_match)},
         {"kv_bytes", line.kv_bytes},
         {"kv_bytes_live", line.kv_bytes_live},
         {"stage_us_per_token", json_of(line.stage_us_per_token)},
         {"rebuilt", line.rebuilt},
         {"computed_per_token", json_of(of_text(line, line.computed_per_token))},
         {"deferred_per_token", json_of(of_text(line, line.deferred_per_token))},
         {"tokens_per_second", json_of(speed_of(line))}});
    if (line.exact_match) lines.back()["answers"] = line.answers;
  }
  return lines;
}

void print_retrieval(std::vector<result> const& results) {
  fmt::print("{:<70} {:>6} {:>3} {:>8} {:>8} {:>6} {:>8} {:>8}\n",
             "policy",
             "budget",
             "R",
             "attended",
             "scope",
             "exact",
             "KV MB",
             "live MB");
  for (result const& line : results) {
    fmt::print("{:<70} {:>6} {:>3} {:>8} {:>8} {:>6.3f} {:>8.2f} {:>8.2f}\n",
               line.policy,
               budget_text(line, "-"),
               line.rebuilt > 0 ? std::to_string(line.rebuilt) : "-",
               line.budget ? std::to_string(*line.budget + line.rebuilt + 1) : "-",
               adore::word_of(line.reach),
               *line.exact_match,
               static_cast<double>(line.kv_bytes) / 1e6,
               static_cast<double>(line.kv_bytes_live) / 1e6);
  }
}

}  // namespace

void print_table(std::vector<result> const& results) {
  if (results.front().exact_match) {
    print_retrieval(results);
    return;
  }
  fmt::print(
      "{:<30} {:>6} {:>3} {:>8} {:>8} {:>9} {:>9} {:>7} {:>6} {:>6} {:>8} {:>8} {:>8} {:>7}\n",
      "policy",
      "budget",
      "R",
      "attended",
      "scope",
      "ppl",
      "ppl 2nd",
      "KL",
      "top1",
      "kept",
      "KV MB",
      "live MB",
      "stage us",
      "tok/s");
  for (result const& line : results) {
    fmt::print(
        "{:<30} {:>6} {:>3} {:>8} {:>8} {:>9.2f} {:>9.2f} {:>7.3f} {:>6.3f} {:>6.3f} {:>8.2f} "
        "{:>8.2f} "
        "{:>8} {:>7}\n",
        line.policy,
        budget_text(line, "-"),
        line.rebuilt > 0 ? std::to_string(line.rebuilt) : "-",
        line.budget ? std::to_string(*line.budget + line.rebuilt + 1) : "-",
        adore::word_of(line.reach),
        line.perplexity,
        line.perplexity_second_half,
        line.kl,
        line.top1,
        line.kept_weight,
        static_cast<double>(line.kv_bytes) / 1e6,
        static_cast<double>(line.kv_bytes_live) / 1e6,
        line.stage_us_per_token ? fmt::format("{:.1f}", *line.stage_us_per_token) : "-",
        line.tokens_per_second > 0 ? fmt::format("{:.1f}", line.tokens_per_second) : "-");
  }
}

void write_csv(std::vector<result> const& results, std::string const& name) {
  std::ofstream file = open_file(name);
  file << "policy,budget,scope,tokens,perplexity,perplexity_second_half,kl,top1,kept_weight,"
          "exact_match,kv_bytes,kv_bytes_live,stage_us_per_token,tokens_per_second,rebuilt,"
          "computed_per_token,deferred_per_token,settings\n";
  for (result const& line : results) {
    file << fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
                        quoted(line.policy),
                        budget_text(line, ""),
                        adore::word_of(line.reach),
                        line.tokens,
                        csv_of(of_text(line, line.perplexity), 6),
                        csv_of(of_text(line, line.perplexity_second_half), 6),
                        csv_of(of_text(line, line.kl), 6),
                        csv_of(of_text(line, line.top1), 6),
                        csv_of(of_text(line, line.kept_weight), 6),
                        csv_of(line.exact_match, 6),
                        line.kv_bytes,
                        line.kv_bytes_live,
                        csv_of(line.stage_us_per_token, 4),
                        csv_of(speed_of(line), 4),
                        line.rebuilt,
                        csv_of(of_text(line, line.computed_per_token), 4),
                        csv_of(of_text(line, line.deferred_per_token), 4),
                        quoted(line.settings));
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + name);
}

void write_json(request const& asked, std::vector<result> const& results, std::string const& name) {
  nlohmann::json const document = {{"model", asked.model},
                                   {"text", asked.retrieval.empty() ? asked.text : asked.retrieval},
                                   {"tokens", asked.tokens},
                                   {"sequences", asked.sequences},
                                   {"prompt", asked.prompt},
                                   {"positions", adore::word_of(asked.positions)},
                                   {"threads", asked.threads},
                                   {"device", asked.on_device ? "cuda" : "cpu"},
                                   {"results", json_of(results)}};
  std::ofstream file = open_file(name);
  // a file name need not be UTF-8
  file << document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  if (!file.flush()) throw std::runtime_error("cannot write " + name);
}

bool can_plot() {
  return std::system("'" ADORE_PYTHON "' -c 'import matplotlib' > /dev/null 2>&1") == 0;
}

void write_plot(std::vector<result> const& results, std::string const& name) {
  // the script reads the results as JSON from its standard input
  std::string const command = "'" ADORE_PYTHON "' '" ADORE_PLOT_SCRIPT "' " +
                              shell_word(name + ".png") + " " + shell_word(name + ".svg");
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "w"), pclose);
  if (!pipe) throw std::runtime_error("the plot needs python3, which cannot be started");
  std::string const text = json_of(results).dump();
  std::fwrite(text.data(), 1, text.size(), pipe.get());
  if (pclose(pipe.release()) != 0) {
    throw std::runtime_error("the plot could not be drawn; it needs python3-matplotlib");
  }
}

void show_progress(int done, int all, double seconds) {
  if (isatty(STDERR_FILENO) == 0) return;
  constexpr int width = 40;
  int const filled = static_cast<int>(static_cast<long>(width) * done / all);
  double const left = seconds / done * (all - done);
  fmt::print(stderr,
             "\r[{:=<{}}{: <{}}] {}/{} tokens, {:.0f} s, {:.0f} s left   ",
             "",
             filled,
             "",
             width - filled,
             done,
             all,
             seconds,
             left);
  if (done == all) fmt::print(stderr, "\n");
}

}  // namespace comparison
