// SPDX-License-Identifier: Apache-2.0
#include "request.hpp"

#include "device.hpp"
#include "llama/gpu/device_policies.hpp"
#include "llama/policy_choice.hpp"
#include <adore/policy_text.hpp>

#include <CLI/CLI.hpp>

#include <cstdint>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <type_traits>

namespace comparison {

namespace {

/// What `all` stands for: every policy that means something for any model and text.
constexpr std::string_view all_policies =
    "sliding_window;strided;strided(bound=none);strided_doubling;streaming_llm;h2o;decayed_h2o;"
    "h2o_per_age;h2o_mask_simulation;h2o_algorithm_1;tova;key_norm;random_reservoir;random_victim;"
    "sparse_transformer;dynamic_top_k(agreed=kv_head);dynamic_top_k(agreed=layer)";

std::vector<std::string> split(std::string const& text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t const end = std::min(text.find(separator, begin), text.size());
    std::string part = text.substr(begin, end - begin);
    part.erase(0, part.find_first_not_of(" \t\n"));
    part.erase(part.find_last_not_of(" \t\n") + 1);
    if (!part.empty()) parts.push_back(part);
    begin = end + 1;
  }
  return parts;
}

/// @param tokens  of a sequence, which "N%" is a share of
std::vector<adore::index_t> read_budgets(std::string const& text, int tokens) {
  std::vector<adore::index_t> budgets;
  for (std::string part : split(text, ',')) {
    std::string const written = part;
    bool const is_share = part.ends_with('%');
    if (is_share) part.pop_back();
    adore::index_t budget = 0;
    if (!adore::detail::read_value(part, budget) || budget < 0 || (is_share && budget > 100)) {
      throw mistake{"--budgets: '" + written +
                    "' is neither a number of tokens nor a share of them (0% to 100%)"};
    }
    budgets.push_back(is_share ? static_cast<adore::index_t>(std::int64_t{tokens} * budget / 100)
                               : budget);
  }
  if (budgets.empty()) throw mistake{"--budgets: at least one number of tokens is needed"};
  return budgets;
}

void refuse_what_makes_no_sense(std::string const& name, request const& asked) {
  if (name == adore::snapkv::name && asked.prompt == 0) {
    throw mistake{"snapkv selects once, at the end of a dense prompt: give --prompt N with it"};
  }
  if (name == adore::sentinel::name) {
    throw mistake{
        "sentinel needs a model trained with its two sentinel tokens, and a text that "
        "contains them; on another model it has no meaning to compare"};
  }
}

/// Why the device cannot run a policy: half a sentence, or nothing.
std::string why_host_only(std::string const& policy) {
  char const* reason = nullptr;
  adore::with_policy(policy, std::nullopt, [&](auto const& made) {
    reason = llama_example::gpu::why_host_only<std::remove_cvref_t<decltype(made)>>();
  });
  return reason != nullptr ? reason : "";
}

void refuse_what_the_device_cannot(request const& asked) {
  if (auto const reason = why_no_device()) throw mistake{"--device cuda: " + *reason};
  if (asked.prompt > 0) {
    throw mistake{"--device cuda takes prompts token by token: leave --prompt out"};
  }
  if (asked.positions != adore::position_scheme::original) {
    throw mistake{"--device cuda turns keys once, when they come: --positions must be original"};
  }
}

/// Reads the cases, whose prompts take the place of a text.
void read_cases(request& asked, int count) {
  llama_example::vocabulary const vocabulary(asked.model);
  try {
    asked.cases = read_retrieval_cases(asked.retrieval, vocabulary, count);
  } catch (std::runtime_error const& error) {
    throw mistake{std::string("--retrieval: ") + error.what()};
  }
  std::int64_t tokens = 0;
  for (retrieval_case const& one : asked.cases) tokens += std::ssize(one.prompt);
  asked.tokens = static_cast<int>(tokens / std::ssize(asked.cases));
}

contestant read_contestant(std::string const& text) {
  llama_example::policy_choice const chosen = llama_example::read_policy_choice(text);
  return {.policy = chosen.policy,
          .label = text,
          .controller = chosen.controller,
          .rebuild = chosen.rebuild};
}

/// Adds the contestants of one policy: one per budget, or one if the budgets do not concern it.
void add_contestants(contestant const& what,
                     std::vector<adore::index_t> const& budgets,
                     request& asked) {
  std::string const& policy = what.policy;
  auto const add = [&](std::optional<adore::index_t> budget) {
    asked.contestants.push_back(what);
    asked.contestants.back().budget = budget;
  };
  refuse_what_makes_no_sense(adore::policy_text::parse(policy).name, asked);
  std::string first_text;
  for (adore::index_t const budget : budgets) {
    std::string text;
    bool unbounded = false;
    adore::with_policy(policy, budget, [&](auto const& made) {
      text = adore::to_text(made);
      unbounded = adore::nominal_budget_of(made) == adore::unbounded;
      if constexpr (adore::limits_attention<std::remove_cvref_t<decltype(made)>>) {
        if (made.attention_limit().scope == adore::top_k_scope::layer &&
            asked.reach == adore::scope::kv_head) {
          throw mistake{policy + ": heads that agree on one set need --scope layer or model"};
        }
      }
    });
    if (unbounded) {
      add(std::nullopt);
      return;
    }
    if (text == first_text) return;  // it gives its budget itself
    if (first_text.empty()) first_text = text;
    add(budget);
  }
}

}  // namespace

std::optional<request> read_request(int argument_count, char** arguments) {
  request asked;
  asked.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  std::string policies = "all";
  std::string budgets = "64,128";
  std::string reach = "default";
  std::string positions = "original";
  std::string device = "cpu";

  CLI::App app{
      "Compares KV-cache retention policies on a model and a text.\n\n"
      "All policies run in lock-step as rows of one batch, token by token, each with its own "
      "cache\n"
      "from which released tokens are really gone. Full attention (keep_all) is always among "
      "them:\n"
      "the others are measured against it on the same text."};
  app.add_option("--model", asked.model, "GGUF file of a Llama-family model")->required();
  auto* const text =
      app.add_option("--text",
                     asked.text,
                     "file with plain text, or .jsonl lines whose \"text\" fields are joined");
  auto* const tokens =
      app.add_option("--tokens", asked.tokens, "tokens per sequence")->capture_default_str();
  auto* const sequences = app.add_option("--sequences",
                                         asked.sequences,
                                         "the text is cut into so many sequences, from its start")
                              ->capture_default_str();
  auto* const retrieval = app.add_option(
      "--retrieval",
      asked.retrieval,
      "instead of a text: .jsonl cases of line retrieval, as LongEval has them (\"prompt\",\n"
      "\"expected_number\"). Each prompt is streamed, the question last; then each policy answers\n"
      "greedily. Right is an answer whose first number is the expected one");
  int cases = 0;
  auto* const count = app.add_option("--cases", cases, "first cases of that file, 0: all")
                          ->check(CLI::NonNegativeNumber)
                          ->capture_default_str();
  auto* const answer = app.add_option("--answer-tokens", asked.answer_tokens, "of an answer")
                           ->check(CLI::PositiveNumber)
                           ->capture_default_str();
  auto* const together =
      app.add_option("--together", asked.together, "cases that run beside each other")
          ->check(CLI::PositiveNumber)
          ->capture_default_str();
  app.add_option(
         "--policies",
         policies,
         "separated by semicolons, each name or name(field=value,...); `all` stands for\n" +
             std::string(all_policies) +
             "\nand for snapkv, if there is a prompt. What may follow: @FILE, a controller, "
             "for\nadaptive_release and attentive_release; and "
             "+rebuild(count=8,schedule=on_entry,...),\nif released tokens come back "
             "(schedules: every_step, on_entry, every, restore)")
      ->capture_default_str();
  app.add_option(
         "--budgets",
         budgets,
         "tokens that a lane keeps after each step, separated by commas, or a share, 50%, of\n"
         "--tokens or of the prompts' mean length; a policy's other fields follow by their\n"
         "defaults (sinks 4; recent m/2 for h2o and h2o_per_age, m/4\n"
         "for decayed_h2o); policies without a budget run once")
      ->capture_default_str();
  auto* const prompt =
      app.add_option(
             "--prompt",
             asked.prompt,
             "so many tokens of each sequence enter at once by dense attention, followed by one\n"
             "selection; only the tokens after them are measured")
          ->capture_default_str();
  app.add_option("--scope",
                 reach,
                 "what has a kept set of its own: model, layer, kv_head, or default: each policy's")
      ->capture_default_str();
  app.add_option("--positions",
                 positions,
                 "rotary positions: original (of the text) or cache_index (rank in the cache)")
      ->capture_default_str();
  app.add_option("--threads", asked.threads, "threads of the engine")->capture_default_str();
  app.add_option("--device",
                 device,
                 "cpu, or cuda: the same comparison on a GPU, for the policies that run there")
      ->capture_default_str();
  app.add_option("--csv", asked.csv, "writes the table as CSV to this file");
  app.add_option("--json", asked.json, "writes settings and table as JSON to this file");
  app.add_option(
      "--plot",
      asked.plot,
      "plots quality against budget to FILE.png and FILE.svg (needs python3-matplotlib)");
  for (auto* const one : {text, tokens, sequences, prompt}) retrieval->excludes(one);
  for (auto* const one : {count, answer, together}) one->needs(retrieval);
  try {
    app.parse(argument_count, arguments);
    if (!*text && !*retrieval) throw CLI::RequiredError("--text or --retrieval");
  } catch (CLI::CallForHelp const&) {
    std::cout << app.help();
    return std::nullopt;
  } catch (CLI::ParseError const& error) {
    throw mistake{std::string(error.what()) + " (see --help)"};
  }

  if (asked.tokens < 2) throw mistake{"--tokens: at least 2 are needed, one to predict another"};
  if (asked.sequences < 1) throw mistake{"--sequences: at least 1 is needed"};
  if (asked.threads < 1) throw mistake{"--threads: at least 1 is needed"};
  if (asked.prompt < 0 || asked.prompt >= asked.tokens) {
    throw mistake{"--prompt: must be smaller than --tokens (" + std::to_string(asked.tokens) + ")"};
  }
  adore::scope chosen{};
  if (reach != "default") {
    if (!adore::detail::read_value(reach, chosen)) {
      throw mistake{"--scope: '" + reach + "' is none of default, model, layer, kv_head"};
    }
    asked.reach = chosen;
  }
  if (!adore::detail::read_value(positions, asked.positions)) {
    throw mistake{"--positions: '" + positions + "' is neither original nor cache_index"};
  }
  if (device != "cpu" && device != "cuda") {
    throw mistake{"--device: '" + device + "' is neither cpu nor cuda"};
  }
  asked.on_device = device == "cuda";
  if (asked.on_device) refuse_what_the_device_cannot(asked);
  bool const all = policies == "all";
  if (all) {
    policies = std::string(all_policies) + (asked.prompt > 0 ? ";snapkv" : "");
  }
  if (!asked.retrieval.empty()) read_cases(asked, cases);
  asked.contestants.push_back(read_contestant(adore::keep_all::name));
  std::vector<adore::index_t> const tokens_kept = read_budgets(budgets, asked.tokens);
  for (std::string const& written : split(policies, ';')) {
    contestant const what = read_contestant(written);
    std::string const& policy = what.policy;
    if (adore::policy_text::parse(policy).name == adore::keep_all::name) continue;
    if (std::string const reason = asked.on_device ? why_host_only(policy) : ""; !reason.empty()) {
      std::string const sentence = policy + " runs on the host only: it " + reason;
      if (!all) throw mistake{"--device cuda: " + sentence};
      asked.left_out.push_back(sentence);
      continue;
    }
    add_contestants(what, tokens_kept, asked);
  }
  return asked;
}

}  // namespace comparison
