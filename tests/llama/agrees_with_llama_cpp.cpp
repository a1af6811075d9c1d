// SPDX-License-Identifier: Apache-2.0
// The example engine with keep_all against llama.cpp on the same model, requantised to float32:
// perplexity within 0.1 %, and the same 64 greedily chosen tokens. Asked for it, prints both also
// for the file as it is, where llama.cpp quantises activations and the two may differ. Usage:
// agrees_with_llama_cpp MODEL FOLDER_FOR_THE_FLOAT32_FILE TEXT [as-it-is]; exits with 77 without a
// model.
#include "llama/blas_kernels.hpp"
#include "llama/engine.hpp"
#include "llama/vocabulary.hpp"

#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>

namespace {

constexpr int text_tokens = 384;
constexpr int generated = 64;
constexpr char const* prompt = "The history of the city begins";

using tokens_t = std::vector<std::int32_t>;

/// One token in, logits out.
struct decoder {
  virtual ~decoder() = default;
  virtual std::span<float const> next(std::int32_t token) = 0;
};

class ours final : public decoder {
 public:
  ours(llama_example::model const& weights, int tokens) : engine_(weights, 1) {
    cache_ = engine_.make_cache("keep_all", {.tokens = tokens}, engine_.cache_options());
    cache_->open(0, 0);
  }
  std::span<float const> next(std::int32_t token) override {
    llama_example::group part{.cache = cache_.get(), .rows = {{0, 1, {&token, 1}}}};
    return engine_.step({&part, 1});
  }

 private:
  llama_example::engine engine_;
  std::unique_ptr<adore::any_cache> cache_;
};

class theirs final : public decoder {
 public:
  theirs(std::string const& path, int tokens) {
    llama_model_params model_parameters = llama_model_default_params();
    model_.reset(llama_model_load_from_file(path.c_str(), model_parameters));
    if (!model_) throw std::runtime_error("llama.cpp cannot load " + path);
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>(tokens);
    parameters.n_threads = parameters.n_threads_batch = 1;
    parameters.type_k = parameters.type_v = GGML_TYPE_F32;
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_.reset(llama_init_from_model(model_.get(), parameters));
    if (!context_) throw std::runtime_error("llama.cpp cannot make a context");
    vocabulary_ =
        static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
  }
  std::span<float const> next(std::int32_t token) override {
    if (llama_decode(context_.get(), llama_batch_get_one(&token, 1)) != 0) {
      throw std::runtime_error("llama_decode failed");
    }
    return {llama_get_logits(context_.get()), vocabulary_};
  }

 private:
  struct free_model {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  struct free_context {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_model, free_model> model_;
  std::unique_ptr<llama_context, free_context> context_;
  std::size_t vocabulary_ = 0;
};

double perplexity(decoder& model, tokens_t const& tokens) {
  double nats = 0.0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    auto const logits = model.next(tokens[i]);
    double const largest = double{*std::max_element(logits.begin(), logits.end())};
    double sum = 0.0;
    for (float const logit : logits) sum += std::exp(double{logit} - largest);
    nats += largest + std::log(sum) - double{logits[static_cast<std::size_t>(tokens[i + 1])]};
  }
  return std::exp(nats / static_cast<double>(tokens.size() - 1));
}

tokens_t continuation(decoder& model, tokens_t const& begin) {
  std::span<float const> logits;
  for (std::int32_t const token : begin) logits = model.next(token);
  tokens_t made;
  while (made.size() < generated) {
    made.push_back(
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = model.next(made.back());
  }
  return made;
}

struct outcome {
  double ours, theirs;
  bool same_tokens;
};

outcome compare(std::string const& path, std::string const& text) {
  llama_example::vocabulary const vocabulary(path);
  llama_example::model const weights = llama_example::read_model(path);
  tokens_t tokens = vocabulary.encode(text);
  tokens.resize(std::min(tokens.size(), std::size_t{text_tokens}));
  tokens_t const begin = vocabulary.encode(prompt);
  int const room = text_tokens + generated;
  ours our_text(weights, room);
  theirs their_text(path, room);
  ours our_story(weights, room);
  theirs their_story(path, room);
  outcome const result{perplexity(our_text, tokens),
                       perplexity(their_text, tokens),
                       continuation(our_story, begin) == continuation(their_story, begin)};
  std::printf("%s: perplexity of %zu tokens %.6f, llama.cpp %.6f (%+.5f %%); %d greedy tokens %s\n",
              path.c_str(),
              tokens.size(),
              result.ours,
              result.theirs,
              100.0 * (result.ours / result.theirs - 1.0),
              generated,
              result.same_tokens ? "agree" : "differ");
  return result;
}

}  // namespace

int main(int count, char** arguments) try {
  llama_example::restart_for_wider_blas_kernels(arguments);
  if (count < 4 || !std::filesystem::exists(arguments[1])) {
    std::printf("skipped: there is no model file (cmake -P cmake/test.cmake gets it)\n");
    return 77;
  }
  llama_log_set([](ggml_log_level, char const*, void*) {}, nullptr);
  std::string const original = arguments[1];
  std::string const whole = (std::filesystem::path(arguments[2]) / "float32.gguf").string();
  std::ostringstream text;
  text << std::ifstream(arguments[3]).rdbuf();

  llama_model_quantize_params parameters = llama_model_quantize_default_params();
  parameters.ftype = LLAMA_FTYPE_ALL_F32;
  parameters.allow_requantize = true;
  parameters.nthread = 2;
  if (llama_model_quantize(original.c_str(), whole.c_str(), &parameters) != 0) {
    throw std::runtime_error("llama.cpp cannot requantise " + original);
  }
  if (count > 4) {  // printed only: llama.cpp rounds activations to 8 bits there
    compare(original, text.str());
  }
  outcome const exact = compare(whole, text.str());
  std::filesystem::remove(whole);
  bool const holds = std::abs(exact.ours / exact.theirs - 1.0) < 1e-3 && exact.same_tokens;
  std::printf("%s\n", holds ? "agreement holds" : "NO AGREEMENT");
  return holds ? 0 : 1;
} catch (std::exception const& error) {
  std::fprintf(stderr, "agrees_with_llama_cpp: %s\n", error.what());
  return 1;
}
