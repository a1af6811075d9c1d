// SPDX-License-Identifier: Apache-2.0
// Which part of which step a cache is in: what has been called, what may come next, and the
// sentences that refuse everything else.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/kv_view.hpp"
#include "adore/token_scores.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

class step_progress {
  enum class stage : std::uint8_t { idle, step, prompt };

 public:
  step_progress(kv_shape const& shape, cache_options const& options)
      : shape_(shape), max_new_(options.max_new), needs_ids_(options.rebuild.count > 0) {}

  std::span<row_step const> rows() const noexcept { return rows_; }
  index_t tokens() const noexcept { return tokens_; }  ///< all that the step computes
  index_t new_tokens() const noexcept { return new_tokens_; }
  /// Tokens that are computed again beside the new ones.
  void add_rebuilt(index_t count) noexcept { tokens_ = new_tokens_ + count; }
  bool in_prompt() const noexcept { return stage_ == stage::prompt; }

  void require_idle(char const* what) const {
    if (stage_ != stage::idle) {
      throw std::logic_error(std::string("adore: ") + what + ": a step is under way; end it first");
    }
  }

  template <eviction_policy P>
  void begin_step(ledger<P> const& books, std::span<row_tokens const> rows) {
    require_idle("begin_step");
    for (std::size_t i = 0; i < rows.size(); ++i) {
      check_row(books, rows[i]);
      if (rows[i].count < 1 || rows[i].count > max_new_) {
        throw std::logic_error("adore: begin_step: " + std::to_string(rows[i].count) +
                               " new tokens for row " + std::to_string(rows[i].row) +
                               "; max_new = " + std::to_string(max_new_));
      }
      books.require_before_end(rows[i].row, rows[i].count);
      for (std::size_t k = 0; k < i; ++k) {
        if (rows[k].row == rows[i].row) {
          throw std::logic_error("adore: begin_step: row " + std::to_string(rows[i].row) +
                                 " is named twice");
        }
      }
      if (books.placed() == placement::by_ledger) check_room(books, rows[i]);
    }
    begin(rows, stage::step);
  }
  template <eviction_policy P>
  void begin_prompt(ledger<P> const& books, row_tokens const& whole) {
    require_idle("begin_prompt");
    check_row(books, whole);
    if (whole.count < 1) throw std::logic_error("adore: begin_prompt: there are no tokens");
    if (books.next_position(whole.row) != 0) {
      throw std::logic_error("adore: begin_prompt: row " + std::to_string(whole.row) +
                             " has seen tokens; a later prompt enters by continue_with");
    }
    begin({&whole, 1}, stage::prompt);
  }
  void end() noexcept { stage_ = stage::idle; }
  /// A step of which `action` fails has not begun, or is over.
  template <class Action>
  void attempt(Action&& action) {
    try {
      action();
    } catch (...) {
      end();
      throw;
    }
  }

  // a call that belongs into a step has come

  void append(index_t layer, token_view<float const> k, token_view<float const> v) {
    require_step("append");
    check_tensor("append", k, shape_.kv_heads);
    check_tensor("append", v, shape_.kv_heads);
    layer_done& done = at(layer, "append");
    if (done.appended) refuse("append", layer, "has its tokens already");
    done.appended = true;
  }
  void attend(index_t layer, token_view<float const> q, token_view<float> out) {
    require_step("attend");
    check_heads("attend", q.heads);
    check_tensor("attend", q, q.heads);
    check_tensor("attend", out, q.heads);
    layer_done& done = at(layer, "attend");
    if (done.observed) refuse("attend", layer, "has been attended already");
    if (!done.appended) refuse("attend", layer, "lacks its append");
    done.observed = true;
  }
  /// @param weights, columns  see `kv_cache::observe`
  void observe(index_t layer,
               token_view<float const> weights,
               std::span<position_t const> columns) {
    require_step("observe");
    check_heads("observe", weights.heads);
    if (weights.tokens != new_tokens()) {
      throw std::logic_error("adore: observe: weights of " + std::to_string(weights.tokens) +
                             " tokens for a step of " + std::to_string(new_tokens()));
    }
    if (!columns.empty() && columns.size() != static_cast<std::size_t>(weights.channels)) {
      throw std::logic_error("adore: observe: one position per column is needed");
    }
    layer_done& done = at(layer, "observe");
    if (done.observed) refuse("observe", layer, "has been observed already");
    if (in_prompt()) refuse("observe", layer, "is in a dense prompt, which the cache must attend");
    done.observed = true;
  }

  /// @param accepted  see `kv_cache::end_step`
  template <eviction_policy P>
  void check_end(ledger<P> const& books, std::span<index_t const> accepted) const {
    require_step("end_step");
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      auto const layer = static_cast<index_t>(l);
      if ((observes_attention<P> || in_prompt()) && !layers_[l].observed) {
        refuse("end_step", layer, "was neither attended nor observed");
      }
      if (scores_keys<P> && !layers_[l].appended) refuse("end_step", layer, "lacks its append");
    }
    check_accepted(accepted);
    if (books.placed() == placement::by_store) require_placed(books);
  }

 private:
  struct layer_done {
    bool appended = false, observed = false;
  };

  void require_step(char const* what) const {
    if (stage_ == stage::idle) {
      throw std::logic_error(std::string("adore: ") + what + ": no step has begun");
    }
  }
  template <class T>
  void check_tensor(char const* what, token_view<T> view, index_t heads) const {
    if (view.tokens != tokens() || view.heads != heads || view.channels != shape_.channels) {
      throw std::logic_error(std::string("adore: ") + what + ": a tensor is [" +
                             std::to_string(view.tokens) + ", " + std::to_string(view.heads) +
                             ", " + std::to_string(view.channels) + "], [" +
                             std::to_string(tokens()) + ", " + std::to_string(heads) + ", " +
                             std::to_string(shape_.channels) + "] is needed");
    }
  }
  void check_heads(char const* what, index_t heads) const {
    if (heads < 1 || heads % shape_.kv_heads != 0) {
      throw std::logic_error(std::string("adore: ") + what + ": " + std::to_string(heads) +
                             " query heads are no multiple of " + std::to_string(shape_.kv_heads) +
                             " KV heads");
    }
  }
  void check_accepted(std::span<index_t const> accepted) const {
    if (accepted.empty()) return;
    if (in_prompt() || accepted.size() != rows_.size()) {
      throw std::logic_error("adore: end_step: one accepted count per row of begin_step is needed");
    }
    for (std::size_t i = 0; i < accepted.size(); ++i) {
      if (accepted[i] < 0 || accepted[i] > rows_[i].count) {
        throw std::logic_error("adore: end_step: " + std::to_string(accepted[i]) + " of " +
                               std::to_string(rows_[i].count) + " tokens accepted");
      }
    }
  }
  [[noreturn]] static void refuse(char const* what, index_t layer, char const* why) {
    throw std::logic_error(std::string("adore: ") + what + ": layer " + std::to_string(layer) +
                           " " + why);
  }
  layer_done& at(index_t layer, char const* what) {
    if (layer < 0 || layer >= shape_.layers) {
      refuse(what, layer, ("does not exist; there are " + std::to_string(shape_.layers)).c_str());
    }
    return layers_[static_cast<std::size_t>(layer)];
  }
  template <eviction_policy P>
  void check_row(ledger<P> const& books, row_tokens const& row) const {
    if (row.row < 0 || row.row >= shape_.sequences || !books.is_open(row.row)) {
      throw std::logic_error("adore: row " + std::to_string(row.row) +
                             " holds no sequence; open it first");
    }
    bool const named = row.tokens.size() == static_cast<std::size_t>(row.count);
    if (!row.tokens.empty() && !named) {
      throw std::logic_error("adore: row " + std::to_string(row.row) + " brings " +
                             std::to_string(row.count) + " tokens but names " +
                             std::to_string(row.tokens.size()));
    }
    if (reads_tokens<P> && !named) {
      throw std::logic_error("adore: this policy reads token ids; give them to begin_step");
    }
    if (needs_ids_ && !named) {
      throw std::logic_error(
          "adore: row " + std::to_string(row.row) +
          ": tokens that may be rebuilt need their ids; give them to begin_step");
    }
    check_scores(row, shape_, books.next_position(row.row));
    if (!row.scores.empty() && !scores_tokens<P>) {
      throw std::logic_error("adore: row " + std::to_string(row.row) +
                             " brings scores, but this policy takes none");
    }
  }
  template <eviction_policy P>
  void require_placed(ledger<P> const& books) const {
    for (row_step const& step : rows_) {
      books.for_lanes(step.row, [&](index_t lane) {
        auto const slots = books.new_slots(lane);
        if (std::find(slots.begin(), slots.end(), -1) == slots.end()) return;
        throw std::logic_error(
            "adore: end_step: the store has not reported by `placed` where all new tokens of row " +
            std::to_string(step.row) + " are");
      });
    }
  }
  template <eviction_policy P>
  void check_room(ledger<P> const& books, row_tokens const& row) const {
    books.for_lanes(row.row, [&](index_t lane) {
      if (books.room(lane) >= row.count) return;
      throw std::length_error(
          "adore: row " + std::to_string(row.row) + " has " + std::to_string(books.room(lane)) +
          " of " + std::to_string(shape_.slots) + " slots free for " + std::to_string(row.count) +
          " new tokens; give the store more slots or the policy a budget");
    });
  }
  void begin(std::span<row_tokens const> rows, stage what) {
    rows_.clear();
    tokens_ = 0;
    for (row_tokens const& row : rows) {
      rows_.push_back({row.row, row.count, tokens_});
      tokens_ += row.count;
    }
    new_tokens_ = tokens_;
    layers_.assign(static_cast<std::size_t>(shape_.layers), {});
    stage_ = what;
  }

  kv_shape shape_;
  index_t max_new_;
  bool needs_ids_;                       // of each token
  index_t tokens_ = 0, new_tokens_ = 0;  // of the step
  stage stage_ = stage::idle;
  std::vector<row_step> rows_;
  std::vector<layer_done> layers_;  // [layer]
};

}  // namespace adore
