// SPDX-License-Identifier: Apache-2.0
// adore-llama: a GGUF model in llama.cpp with a KV cache that a policy keeps small; see --help.
#include "llama_cpp/decoder.hpp"
#include "llama_cpp/llama_objects.hpp"
#include "llama_cpp/model_check.hpp"
#include "llama_cpp/remote_devices.hpp"
#include "llama_cpp/request.hpp"
#include "llama_cpp/scoring.hpp"
#include "llama_cpp/text.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>

namespace {

using namespace llama_cpp_example;
using adore::index_t;

double seconds(timeval const& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

double mebibytes(std::size_t bytes) {
  return static_cast<double>(bytes) / 1024.0 / 1024.0;
}

/// Settles B and m: `cells` is B in whole granules, from the budget that was asked for or from the
/// policy's own numbers; without any budget there is room for the whole text.
void settle_budget(request& asked, std::size_t text_tokens) {
  decoder_options& how = asked.decoding;
  index_t const wanted = asked.cells.value_or(512);
  if (wanted < 2) throw std::invalid_argument("--budget: at least 2 cells are needed");
  policy_facts facts;
  index_t const attended_beside = how.rebuild.count + 1;
  if (!how.policy.empty()) {
    how.budget = whole_granules(wanted) - attended_beside;
    if (*how.budget < 1) {
      throw std::invalid_argument("--rebuild: with " + std::to_string(how.rebuild.count) +
                                  " tokens that come back nothing of the budget is left to keep");
    }
    facts = facts_of(how.policy, how.budget);
  }
  bool const bounded = facts.budget != adore::unbounded;
  auto const text_length = static_cast<index_t>(text_tokens);
  if (text_length > 0) how.chunk = std::min(how.chunk, text_length);
  index_t const cells = whole_granules(bounded ? facts.budget + attended_beside
                                               : asked.cells.value_or(text_length + asked.predict));
  how.cells = bounded ? whole_granules(facts.budget + how.chunk + how.rebuild.count) : cells;
  std::fprintf(stderr, "policy: %s\n", how.policy.empty() ? "none" : facts.text.c_str());
  if (facts.default_scope != adore::scope::model) {
    std::fprintf(stderr,
                 "scope: model, instead of %s: a cell of llama.cpp holds a token for all layers "
                 "and heads\n",
                 adore::word_of(facts.default_scope));
  }
  if (facts.guards_newest) {
    std::fprintf(stderr, "the newest token is protected, which this policy does not ask for\n");
  }
  std::string const given = asked.cells ? std::to_string(wanted) : "not given";
  if (bounded) {
    std::fprintf(stderr,
                 "budget: %s, rounded up to %d cells; m = %d tokens are kept\n",
                 given.c_str(),
                 cells,
                 facts.budget);
    if (how.rebuild.count > 0) std::fprintf(stderr, "rebuild: R = %d\n", how.rebuild.count);
  } else {
    std::fprintf(stderr, "budget: none, room for %d cells\n", cells);
  }
}

struct timed_text {
  std::size_t tokens = 0;
  double seconds = 0.0;
  void print(char const* what) const {
    if (tokens == 0) return;
    std::fprintf(stderr,
                 "%s: %zu tokens in %.2f s, %.1f tokens/s\n",
                 what,
                 tokens,
                 seconds,
                 static_cast<double>(tokens) / seconds);
  }
};

void print_parts(step_times const& steps) {
  if (steps.count == 0) return;
  auto const count = static_cast<double>(steps.count);
  std::fprintf(stderr,
               "per token: in llama.cpp %.3f ms, in its callback %.4f ms (%.3f %%), in the policy "
               "%.4f ms (%.3f %%)\n",
               1e3 * steps.in_llama / count,
               1e3 * steps.in_callback / count,
               100.0 * steps.in_callback / steps.seconds,
               1e3 * steps.in_policy() / count,
               100.0 * steps.in_policy() / steps.seconds);
}

class session {
 public:
  session(request const& asked, llama_model* model, decoder& engine)
      : asked_(asked),
        model_(model),
        engine_(engine),
        sampler_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
    if (asked.temperature > 0.0F) {
      llama_sampler_chain_add(sampler_.get(), llama_sampler_init_temp(asked.temperature));
      llama_sampler_chain_add(
          sampler_.get(), llama_sampler_init_dist(static_cast<std::uint32_t>(asked.decoding.seed)));
    } else {
      llama_sampler_chain_add(sampler_.get(), llama_sampler_init_greedy());
    }
  }

  /// Reads tokens, writes the answer to the standard output and returns it.
  std::string answer(std::span<llama_token const> prompt) {
    auto begin = std::chrono::steady_clock::now();
    engine_.feed(prompt);
    llama_token token = llama_sampler_sample(sampler_.get(), engine_.context(), -1);
    read_.tokens += prompt.size();
    read_.seconds += seconds_since(begin);
    std::string words;
    begin = std::chrono::steady_clock::now();
    llama_vocab const* const vocab = llama_model_get_vocab(model_);
    for (int made = 0; made < asked_.predict && !llama_vocab_is_eog(vocab, token); ++made) {
      std::string const piece = piece_of(model_, token);
      words += piece;
      std::fputs(piece.c_str(), stdout);
      std::fflush(stdout);
      engine_.feed({&token, 1});
      token = llama_sampler_sample(sampler_.get(), engine_.context(), -1);
      ++written_.tokens;
    }
    written_.seconds += seconds_since(begin);
    std::fputs("\n", stdout);
    std::fflush(stdout);
    return words;
  }

  void talk() {
    chat with(model_);
    std::string line;
    for (bool first = true; std::fputs("> ", stderr), std::getline(std::cin, line); first = false) {
      with.model_says(answer(tokens_of(model_, with.user_says(line), first, true)));
    }
    std::fputs("\n", stderr);
  }

  void perplexity(std::span<llama_token const> tokens) {
    if (tokens.size() < 2) throw std::invalid_argument("--perplexity: two tokens are needed");
    auto const begin = std::chrono::steady_clock::now();
    double nats = 0.0;
    double late_nats = 0.0;  // of tokens after the budget was full
    std::size_t late = 0;
    auto const full = static_cast<std::size_t>(asked_.decoding.cells);
    engine_.feed(
        tokens.first(tokens.size() - 1), [&](std::size_t i, std::span<float const> logits) {
          double const largest = double{*std::max_element(logits.begin(), logits.end())};
          double sum = 0.0;
          for (float const logit : logits) sum += std::exp(double{logit} - largest);
          double const loss =
              largest + std::log(sum) - double{logits[static_cast<std::size_t>(tokens[i + 1])]};
          nats += loss;
          if (i < full) return;
          late_nats += loss;
          ++late;
        });
    read_.tokens += tokens.size() - 1;
    read_.seconds += seconds_since(begin);
    std::printf("perplexity %.3f over %zu tokens",
                std::exp(nats / static_cast<double>(tokens.size() - 1)),
                tokens.size() - 1);
    if (late > 0) {
      std::printf("; %.3f over the %zu after the first %zu",
                  std::exp(late_nats / static_cast<double>(late)),
                  late,
                  full);
    }
    std::printf("\n");
  }

  void report() const {
    read_.print("read");
    written_.print("written");
    std::size_t const seen = read_.tokens + written_.tokens;
    std::fprintf(stderr,
                 "K/V: %.2f MiB in %u cells; all %zu tokens would take %.2f MiB\n",
                 mebibytes(engine_.key_value_bytes()),
                 llama_n_ctx(engine_.context()),
                 seen,
                 mebibytes(engine_.bytes_per_cell() * seen));
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::fprintf(stderr,
                 "peak memory of the process: %.1f MiB\n",
                 mebibytes(static_cast<std::size_t>(usage.ru_maxrss) * 1024));
    std::fprintf(stderr,
                 "processor time of the process: %.2f s, in the system %.2f s\n",
                 seconds(usage.ru_utime),
                 seconds(usage.ru_stime));
    std::fprintf(stderr, "released: %zu tokens\n", engine_.released());
    if (engine_.rebuilt() > 0) {
      std::fprintf(stderr, "rebuilt: %zu tokens, in all steps together\n", engine_.rebuilt());
    }
    step_times const plain = engine_.plain_steps();
    step_times const shifted = engine_.shifting_steps();
    if (engine_.shifts() > 0) std::fprintf(stderr, "shifts: %ld\n", engine_.shifts());
    if (shifted.count > 0 && plain.count > 0) {
      std::fprintf(stderr,
                   "a step with a shift takes %.2f ms, any other %.2f ms: %.1f %% of all time\n",
                   1e3 * shifted.mean(),
                   1e3 * plain.mean(),
                   100.0 * static_cast<double>(shifted.count) * (shifted.mean() - plain.mean()) /
                       (shifted.seconds + plain.seconds));
    }
    print_parts(plain + shifted);
    if (!asked_.shows_kept) return;
    std::fprintf(stderr, "kept:");
    for (adore::position_t const p : engine_.kept()) std::fprintf(stderr, " %d", p);
    std::fprintf(stderr, "\n");
  }

 private:
  request const& asked_;
  llama_model* model_;
  decoder& engine_;
  sampler_ptr sampler_;
  timed_text read_, written_;
};

void run(request asked) {
  require_supported(asked.model);
  for (std::string const& server : asked.rpc) {
    std::fprintf(stderr, "RPC server: %s\n", server.c_str());
    add_remote_devices(server);
  }
  llama_model_params parameters = llama_model_default_params();
  parameters.n_gpu_layers = asked.gpu_layers;
  parameters.split_mode = asked.split;
  parameters.tensor_split = asked.shares.empty() ? nullptr : asked.shares.data();
  model_ptr model;
  {
    kept_error const error;
    model.reset(llama_model_load_from_file(asked.model.c_str(), parameters));
    if (!model) throw std::runtime_error("llama.cpp cannot load it" + error.in_parentheses());
  }
  std::vector<llama_token> tokens;
  if (!asked.text.empty()) tokens = tokens_of(model.get(), asked.text, true, false);
  if (asked.limit > 0) {
    tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(asked.limit)));
  }
  std::optional<scoring> scores;
  if (!asked.controller.empty()) {
    asked.decoding.scorer = &scores.emplace(asked.controller, asked.model).scorer();
  }
  bool const talks = asked.what == request::task::talk;
  settle_budget(
      asked,
      talks ? static_cast<std::size_t>(llama_model_n_ctx_train(model.get())) : tokens.size());
  decoder engine(model.get(), asked.decoding);
  session with(asked, model.get(), engine);
  switch (asked.what) {
    case request::task::generate:
      with.answer(tokens);
      break;
    case request::task::perplexity:
      with.perplexity(tokens);
      break;
    case request::task::talk:
      with.talk();
      break;
  }
  with.report();
}

}  // namespace

int main(int count, char** arguments) try {
  if (auto const asked = llama_cpp_example::read_request(count, arguments)) run(*asked);
  return 0;
} catch (std::exception const& error) {
  std::fprintf(stderr, "adore-llama: %s\n", error.what());
  return 2;
}
