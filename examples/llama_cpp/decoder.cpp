// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/decoder.hpp"

#include "llama_cpp/model_check.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace llama_cpp_example {

namespace {

std::string number(std::int64_t value) {
  return std::to_string(value);
}

void require(bool holds, std::string const& sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

decoder_options const& checked(decoder_options const& options) {
  require(options.chunk >= 1, "chunk = " + number(options.chunk) + ": must be at least 1");
  require(options.scores_every >= 1,
          "scores_every = " + number(options.scores_every) + ": must be at least 1");
  require(options.shift_every >= 1,
          "shift_every = " + number(options.shift_every) + ": must be at least 1");
  return options;
}

}  // namespace

decoder::decoder(llama_model* model, decoder_options const& options)
    : options_(checked(options)),
      layers_(llama_model_n_layer(model)),
      vocabulary_(static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))),
      reader_([this](std::span<std::int64_t const> cells) { place(cells); },
              [this](adore::index_t layer, adore::token_view<float const> weights) {
                if (watcher_) watcher_(layer, weights);
                cache_->observe(layer, weights);
              }),
      batch_(options.chunk) {
  policy_facts facts;
  if (!options.policy.empty()) facts = facts_of(options.policy, options.budget);
  observes_ = facts.observes;
  positions_ = options.positions.value_or(facts.default_positions);
  require(facts.budget == adore::unbounded || facts.budget <= options.cells - options.chunk,
          facts.text + " keeps " + number(facts.budget) + " tokens; with chunks of " +
              number(options.chunk) + " it needs as many cells more, there are " +
              number(options.cells));
  require(!observes_ || options.flash_attention != LLAMA_FLASH_ATTN_TYPE_ENABLED,
          facts.text + " needs attention weights, and flash attention computes none");
  require(!facts.last_query_only || options.scores_every == 1,
          facts.text + " looks at the last query's weights alone: they must be read at each step");

  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = static_cast<std::uint32_t>(options.cells);
  parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(options.chunk);
  parameters.n_seq_max = 1;
  parameters.kv_unified = true;
  parameters.n_threads = parameters.n_threads_batch = options.threads;
  parameters.type_k = parameters.type_v = options.cache_type;
  parameters.flash_attn_type = observes_ ? LLAMA_FLASH_ATTN_TYPE_DISABLED : options.flash_attention;
  bytes_per_cell_ = require_readable(model, parameters, observes_);
  if (observes_) {
    parameters.cb_eval = attention_reader::on_node;
    parameters.cb_eval_user_data = &reader_;
  }
  kept_error const error;
  context_.reset(llama_init_from_model(model, parameters));
  if (!context_) throw std::runtime_error("llama.cpp makes no context" + error.in_parentheses());
  require(positions_ == adore::position_scheme::original ||
              llama_memory_can_shift(llama_get_memory(context_.get())),
          "positions = cache_index: llama.cpp cannot shift the keys of this model");
  if (!options.policy.empty()) {
    cache_ =
        make_retention(options.policy, options.budget, context_.get(), options.chunk, options.seed);
  }
}

std::span<float const> decoder::feed(
    std::span<llama_token const> tokens,
    std::function<void(std::size_t, std::span<float const>)> const& each) {
  require(!tokens.empty(), "there are no tokens to feed");
  auto const chunk = static_cast<std::size_t>(options_.chunk);
  std::size_t last = 0;
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    auto const part = tokens.subspan(begin, std::min(chunk, tokens.size() - begin));
    step(part, static_cast<bool>(each));
    last = part.size() - 1;
    for (std::size_t i = 0; each && i < part.size(); ++i) {
      each(begin + i, logits(static_cast<int>(i)));
    }
  }
  return logits(static_cast<int>(last));
}

std::vector<adore::position_t> decoder::kept() const {
  return cache_ ? cache_->kept() : std::vector<adore::position_t>{};
}

std::span<float const> decoder::logits(int token) {
  return {llama_get_logits_ith(context_.get(), token), vocabulary_};
}

/// The cells of a step's tokens enter the books and the store's table.
void decoder::place(std::span<std::int64_t const> cells) {
  for (std::size_t j = 0; j < cells.size(); ++j) {
    auto const cell = static_cast<adore::index_t>(cells[j]);
    auto const token = static_cast<adore::index_t>(j);
    cache_->placed(token, cell);
    cache_->store().put(0, cell, {cache_->next_position() + token, (*batch_).pos[j]});
  }
}

void decoder::step(std::span<llama_token const> tokens, bool all_logits) {
  auto const count = static_cast<adore::index_t>(tokens.size());
  auto const begin = std::chrono::steady_clock::now();
  bool const shifted = close_gaps();
  llama_memory_t const memory = llama_get_memory(context_.get());
  adore::position_t const first = llama_memory_seq_pos_max(memory, 0) + 1;
  llama_batch& batch = *batch_;
  batch.n_tokens = count;
  for (adore::index_t j = 0; j < count; ++j) {
    batch.token[j] = tokens[static_cast<std::size_t>(j)];
    batch.pos[j] = first + j;
    batch.n_seq_id[j] = 1;
    batch.seq_id[j][0] = 0;
    batch.logits[j] = all_logits || j + 1 == count ? 1 : 0;
  }
  bool const reads_weights = steps_ % options_.scores_every == 0;
  reader_.read_weights(reads_weights);
  if (cache_) cache_->begin_step(count);
  kept_error const error;
  int const status = llama_decode(context_.get(), batch);
  reader_.rethrow();
  if (status != 0) {
    throw std::runtime_error(
        status == 1 ? "the " + number(llama_n_ctx(context_.get())) +
                          " cells of the context are taken and nothing may be released: give "
                          "more room, or take a policy with a budget"
                    : "llama_decode fails with " + number(status) + error.in_parentheses());
  }
  if (cache_ && !observes_) {
    // without the callback nobody says which cells these are; any free number will do as a name
    std::vector<std::int64_t> names;
    auto const& cells = cache_->store().row(0);
    for (std::size_t cell = 0; names.size() < tokens.size(); ++cell) {
      if (cells[cell].position == adore::no_position) {
        names.push_back(static_cast<std::int64_t>(cell));
      }
    }
    place(names);
  } else if (observes_ && !reads_weights) {
    for (adore::index_t layer = 0; layer < layers_; ++layer) {
      cache_->observe(layer, {static_cast<float const*>(nullptr), count, 1, 0});
    }
  }
  if (cache_) released_ += cache_->end_step();
  ++steps_;
  if (count > 1) return;
  (void)llama_get_logits_ith(context_.get(), 0);  // waits for a device
  step_times& times = shifted ? shifting_steps_ : plain_steps_;
  ++times.count;
  times.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Cache-index positions: moves what is kept together, run by run, and returns whether it did.
/// llama.cpp then turns the keys of all cells and layers at once, which costs as much for one moved
/// token as for all; so gaps are left until there are `shift_every`, and sinks seem that much
/// further away.
bool decoder::close_gaps() {
  if (!cache_ || positions_ == adore::position_scheme::original) return false;
  std::vector<adore::position_t> rotary;
  for (llama_store::cell const& cell : cache_->store().row(0)) {
    if (cell.position != adore::no_position) rotary.push_back(cell.rotary);
  }
  auto const kept = static_cast<adore::position_t>(rotary.size());
  if (cache_->store().next_rotary(0) - kept < options_.shift_every) return false;
  std::sort(rotary.begin(), rotary.end());
  for (adore::position_t rank = 0; rank < kept;) {
    adore::position_t const first = rotary[static_cast<std::size_t>(rank)];
    adore::position_t length = 1;
    while (rank + length < kept &&
           rotary[static_cast<std::size_t>(rank + length)] == first + length) {
      ++length;
    }
    if (first != rank) cache_->store().shift(0, first, first + length, rank - first);
    rank += length;
  }
  ++shifts_;
  return true;
}

}  // namespace llama_cpp_example
