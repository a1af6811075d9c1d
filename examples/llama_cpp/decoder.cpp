// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/decoder.hpp"

#include "llama_cpp/model_check.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

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
  require(options.rebuild.count >= 0,
          "rebuild: count = " + number(options.rebuild.count) + ": must not be negative");
  return options;
}

}  // namespace

decoder::decoder(llama_model* model, decoder_options const& options)
    : options_(checked(options)),
      layers_(llama_model_n_layer(model)),
      vocabulary_(static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)))),
      reader_(
          [this](std::span<std::int64_t const> cells) { place(cells); },
          [this](adore::index_t layer, adore::token_view<float const> weights) {
            // nobody asks what the tokens before the new ones attend
            weights = {weights(first_new_, 0), weights.tokens - first_new_, 1, weights.channels};
            if (watcher_) watcher_(layer, weights);
            cache_->observe(layer, weights);
          }),
      mask_(options.rebuild.mask),
      batch_(options.chunk + options.rebuild.count) {
  policy_facts facts;
  if (!options.policy.empty()) facts = facts_of(options.policy, options.budget);
  observes_ = facts.observes;
  positions_ = options.positions.value_or(facts.default_positions);
  adore::index_t const comes = options.chunk + options.rebuild.count;
  require(facts.budget == adore::unbounded || facts.budget <= options.cells - comes,
          facts.text + " keeps " + number(facts.budget) + " tokens; with chunks of " +
              number(options.chunk) + " it needs as many cells more" +
              (options.rebuild.count > 0
                   ? ", and " + number(options.rebuild.count) + " for tokens that come back"
                   : "") +
              ", there are " + number(options.cells));
  require(options.rebuild.count == 0 || !options.policy.empty(),
          "rebuild: nothing is released without a policy");
  require(!facts.takes_scores || options.scorer != nullptr,
          facts.text + " ranks by a controller's scores, and there is no controller");
  require(!facts.takes_scores || options.scorer->outputs() == 1,
          "the controller scores a token for each layer or head; a cell holds it for all of them: "
          "take a controller with one output");
  require(options.rebuild.count == 0 || positions_ == adore::position_scheme::original,
          "rebuild: " + facts.text +
              " shifts what is kept to other rotary positions, so that released tokens lose "
              "theirs; positions must be original");
  auto const sequences = static_cast<adore::index_t>(llama_max_parallel_sequences());
  require(options.rebuild.count < sequences,
          "rebuild: count = " + number(options.rebuild.count) +
              ": each token comes back in a "
              "sequence of its own, of which llama.cpp has " +
              number(sequences));
  require(!observes_ || options.flash_attention != LLAMA_FLASH_ATTN_TYPE_ENABLED,
          facts.text + " needs attention weights, and flash attention computes none");
  require(!facts.last_query_only || options.scores_every == 1,
          facts.text + " looks at the last query's weights alone: they must be read at each step");

  llama_context_params of_context = parameters();
  bytes_per_cell_ = require_readable(model, of_context, observes_);
  if (sees_cells()) {
    of_context.cb_eval = on_node;
    of_context.cb_eval_user_data = this;
  }
  kept_error const error;
  context_.reset(llama_init_from_model(model, of_context));
  if (!context_) throw std::runtime_error("llama.cpp makes no context" + error.in_parentheses());
  require(positions_ == adore::position_scheme::original ||
              llama_memory_can_shift(llama_get_memory(context_.get())),
          "positions = cache_index: llama.cpp cannot shift the keys of this model");
  if (options.scorer != nullptr) options.scorer->open(0);  // it may have heard another sequence
  if (!options.policy.empty()) {
    cache_ = make_retention(options.policy,
                            options.budget,
                            context_.get(),
                            options.chunk,
                            options.seed,
                            options.rebuild);
  }
}

llama_context_params decoder::parameters() const {
  auto const of_rebuilt = static_cast<std::uint32_t>(options_.rebuild.count);
  llama_context_params result = llama_context_default_params();
  result.n_ctx = static_cast<std::uint32_t>(options_.cells);
  result.n_batch = result.n_ubatch = static_cast<std::uint32_t>(options_.chunk) + of_rebuilt;
  // no K/V: all share the cells; but llama.cpp has room for the logits of as many tokens
  result.n_seq_max = 1 + of_rebuilt;
  result.kv_unified = true;
  result.n_threads = result.n_threads_batch = options_.threads;
  result.type_k = result.type_v = options_.cache_type;
  result.flash_attn_type = observes_ ? LLAMA_FLASH_ATTN_TYPE_DISABLED : options_.flash_attention;
  return result;
}

/// Most calls only ask, about a node that nobody wants; to look at the clock for each of them would
/// take longer than to answer.
bool decoder::on_node(ggml_tensor* node, bool asks, void* engine) noexcept {
  auto& self = *static_cast<decoder*>(engine);
  if (asks && mask_of(node) == nullptr) return self.look_at(node, asks);
  moment const begin = std::chrono::steady_clock::now();
  bool const wanted = self.look_at(node, asks);
  self.looking_ += seconds_since(begin);
  return wanted;
}

bool decoder::look_at(ggml_tensor* node, bool asks) noexcept {
  if (asks) mask_.before(node);
  return attention_reader::on_node(node, asks, &reader_);
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
  return {llama_get_logits_ith(context_.get(), first_new_ + token), vocabulary_};
}

/// The cells of a step's new tokens enter the books and the store's table.
void decoder::place(std::span<std::int64_t const> cells) {
  if (options_.rebuild.count > 0) mask_.placed(cells);
  auto const first = static_cast<std::size_t>(first_new_);
  for (std::size_t row = first; row < cells.size(); ++row) {
    auto const cell = static_cast<adore::index_t>(cells[row]);
    auto const token = static_cast<adore::index_t>(row - first);
    cache_->placed(token, cell);
    cache_->store().put(0, cell, {cache_->next_position() + token, (*batch_).pos[row]});
  }
}

void decoder::step(std::span<llama_token const> tokens, bool all_logits) {
  auto const count = static_cast<adore::index_t>(tokens.size());
  moment const begin = std::chrono::steady_clock::now();
  bool const shifted = close_gaps();
  adore::row_tokens row{0, count, tokens};
  if (options_.scorer != nullptr) options_.scorer->score({&row, 1});
  if (cache_) cache_->begin_step(row);
  fill_batch(tokens, all_logits);
  bool const reads_weights = steps_ % options_.scores_every == 0;
  reader_.read_weights(observes_ && reads_weights);
  kept_error const error;
  looking_ = 0.0;
  moment const decoding = std::chrono::steady_clock::now();
  int const status = llama_decode(context_.get(), *batch_);
  double in_llama = seconds_since(decoding) - looking_;
  reader_.rethrow();
  mask_.rethrow();
  if (status == 0 && first_new_ > 0 && mask_.written() == 0) {
    throw std::runtime_error(
        "this llama.cpp reads its mask in no node SOFT_MAX or FLASH_ATTN_EXT, so that no token can "
        "come back");
  }
  if (status != 0) {
    throw std::runtime_error(
        status == 1 ? "the " + number(llama_n_ctx(context_.get())) +
                          " cells of the context are taken and nothing may be released: give "
                          "more room, or take a policy with a budget"
                    : "llama_decode fails with " + number(status) + error.in_parentheses());
  }
  for (llama_seq_id scratch = 1; scratch <= first_new_; ++scratch) {
    llama_memory_seq_rm(llama_get_memory(context_.get()), scratch, -1, -1);
  }
  if (cache_ && !sees_cells()) {
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
  moment const waiting = std::chrono::steady_clock::now();
  (void)logits(0);  // waits for a device
  in_llama += seconds_since(waiting);
  step_times& times = shifted ? shifting_steps_ : plain_steps_;
  times = times + step_times{1, seconds_since(begin), in_llama, looking_};
}

/// Released tokens that come back are before the new ones, so that they find free cells in the
/// order of their positions: if all come back, what is summed over the cells is then summed as if
/// nothing had been released. Each is in a scratch sequence, because llama_decode takes an old
/// position in an empty sequence only.
void decoder::fill_batch(std::span<llama_token const> tokens, bool all_logits) {
  llama_pos position = llama_memory_seq_pos_max(llama_get_memory(context_.get()), 0) + 1;
  batch_.clear();
  first_new_ = 0;
  if (cache_) {
    for (adore::rebuilt_token const& back : cache_->rebuilt()) {
      batch_.add(back.id, back.position, ++first_new_, false);
    }
  }
  for (llama_token const& token : tokens) {
    batch_.add(token, position++, 0, all_logits || &token == &tokens.back());
  }
  rebuilt_ += static_cast<std::size_t>(first_new_);
  if (options_.rebuild.count == 0) return;
  std::vector<adore::position_t> cached;
  for (llama_store::cell const& cell : cache_->store().row(0)) cached.push_back(cell.position);
  mask_.begin(
      std::move(cached), {(*batch_).pos, static_cast<std::size_t>((*batch_).n_tokens)}, first_new_);
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
