// SPDX-License-Identifier: Apache-2.0
// The facade: a store, a policy, a scope and the books, driven by the events of a step.
#pragma once

#include "adore/attention/key_storage.hpp"
#include "adore/attention/pending_weights.hpp"
#include "adore/attention/prompt_stage.hpp"
#include "adore/attention/query_attention.hpp"
#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/kv_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adore {

/// A KV cache that keeps what its policy chooses.
///
///     cache.open(row, seed);
///     cache.begin_step();                        one new token for every open row, or a list of
///     rows for each layer: cache.append(layer, k, v); cache.attend(layer, q, out);
///                     or cache.observe(layer, weights), if the engine attends by itself
///     cache.end_step();                          now the policy decides
///
/// Nothing is released and no state changes before `end_step`. Tokens of a step are packed row
/// after row in the order of `begin_step`; q, k, v and out are [token, head, channel].
template <class Store, class Policy>
class kv_cache {
  using policy_type = typename checked_policy<Policy>::type;
  using store_type = typename checked_store<Store>::type;
  static_assert(!rebuilds_tokens<Policy> && !recalls_tokens<Policy>,
                "adore: this cache neither rebuilds nor recalls tokens");
  static constexpr bool by_slot = slot_store<Store>;

 public:
  /// @throws std::invalid_argument if numbers make no sense together, naming field and value
  kv_cache(Store store, Policy policy, cache_options options = {})
      : store_(std::move(store)),
        options_(std::move(options)),
        ledger_(checked(policy),
                ledger_shape(),
                reach(policy),
                options_.max_new,
                by_slot ? placement::by_ledger : placement::by_store),
        order_(lanes()),
        pending_(observes_attention<Policy> ? lanes() : 0, options_.max_new, ledger_.slots()),
        storage_(policy, scheme(), options_.rotation, ledger_.slots()) {
    if constexpr (limits_attention<Policy>) {
      if (policy.attention_limit().scope == top_k_scope::layer &&
          ledger_.reach() == scope::kv_head) {
        throw std::invalid_argument(
            "adore: heads that agree on one set need lanes of scope layer or model");
      }
    }
    for (index_t lane = 0; lane < lanes_in_row(); ++lane) check_budget(lane);
  }

  Policy const& policy() const noexcept { return ledger_.policy(); }
  Store& store() noexcept { return store_; }
  ledger<Policy> const& books() const noexcept { return ledger_; }
  scope reach() const noexcept { return ledger_.reach(); }
  cache_options const& options() const noexcept { return options_; }
  position_scheme scheme() const noexcept { return options_.positions.value_or(default_scheme()); }

  // ------------------------------------------------------------------ life of a sequence

  /// Begins an empty sequence in a free row. Random policies draw from `seed`, never from the row.
  void open(index_t row, std::uint64_t seed = 0) {
    require_idle("open");
    ledger_.open(row, seed);
    for_lanes(row, [&](index_t lane) { order_.clear(lane); });
  }
  void close(index_t row) {
    require_idle("close");
    if constexpr (!by_slot) {
      for_lanes(row, [&](index_t lane) { tell_store(lane, ledger_.kept(lane)); });
    }
    ledger_.close(row);
  }
  /// `to`, a free row, goes on from what `from` holds now.
  void fork(index_t from, index_t to) {
    require_idle("fork");
    static_assert(by_slot || forking_store<Store>,
                  "adore: this store cannot fork: it needs 'void fork(index_t from, index_t to)'");
    ledger_.fork(from, to);
    for_lanes(from, [&](index_t lane) { order_.copy(lane, lane + (to - from) * lanes_in_row()); });
    if constexpr (by_slot) {
      for (index_t layer = 0; layer < ledger_.shape().layers; ++layer) {
        copy_row(kv_view_of(store_.keys(layer)), from, to);
        copy_row(kv_view_of(store_.values(layer)), from, to);
      }
    } else {
      store_.fork(from, to);
    }
  }
  /// A row's books as they are now; K/V are the store's to save, in the same slots.
  row_snapshot snapshot(index_t row) const { return ledger_.snapshot(row); }
  /// Opens a free row with saved books.
  void restore(index_t row, row_snapshot const& saved) {
    require_idle("restore");
    ledger_.restore(row, saved);
    for_lanes(row, [&](index_t lane) { order_.assign(lane, ledger_.positions(lane)); });
  }

  // ------------------------------------------------------------------ one step

  /// One new token for every open row.
  void begin_step() {
    every_row_.clear();
    for (index_t row = 0; row < ledger_.shape().sequences; ++row) {
      if (ledger_.is_open(row)) every_row_.push_back({row});
    }
    begin_step(every_row_);
  }
  /// @throws std::logic_error in the middle of a step, for a row that is not open or named twice,
  /// or
  ///         if the policy reads tokens and none are given
  void begin_step(std::span<row_tokens const> rows) {
    require_idle("begin_step");
    check_rows(rows);
    steps_.clear();
    queries_.clear();
    ledger_.forget_released();
    for (row_tokens const& row : rows) {
      steps_.push_back({row.row, row.count, static_cast<index_t>(queries_.size())});
      for_lanes(row.row, [&](index_t lane) {
        ledger_.place(lane, row.count);
        if constexpr (by_slot) enter(lane, row);
      });
      for (index_t j = 0; j < row.count; ++j) {
        queries_.push_back({row.row, ledger_.next_position(row.row) + j});
      }
    }
    if constexpr (by_slot) number_queries();
    layers_done_.assign(static_cast<std::size_t>(ledger_.shape().layers), {});
    pending_.begin();
    stage_ = stage::step;
  }

  /// Rotary positions of the step's tokens, [token], for an engine that turns q and k itself.
  std::vector<position_t> positions() const {
    std::vector<position_t> result;
    for (query_record const& query : queries_) result.push_back(query.rotary);
    return result;
  }

  /// For a store that chooses slots itself: the j-th new token of the row went to `slot`.
  void placed(index_t row, index_t layer, index_t kv_head, index_t j, index_t slot) requires(
      !by_slot) {
    index_t const lane = ledger_.lane(row, layer, kv_head);
    ledger_.report_placed(lane, j, slot);
    order_.append(lane, slot, ledger_.next_position(row) + j);
  }
  /// For a store that moved its tokens: new_slot_of[old slot], -1 for a free one.
  void moved(index_t row, index_t layer, index_t kv_head, std::span<index_t const> new_slot_of) {
    index_t const lane = ledger_.lane(row, layer, kv_head);
    ledger_.move(lane, new_slot_of);
    order_.assign(lane, ledger_.positions(lane));
  }

  /// Puts the step's K and V of a layer into their slots, [token, kv_head, channel].
  void append(index_t layer,
              token_view<float const> k,
              token_view<float const> v) requires by_slot {
    layer_progress& done = progress(layer, "append");
    if (done.appended)
      throw std::logic_error("adore: append: layer " + std::to_string(layer) +
                             " has its tokens already");
    check_tokens("append", k, ledger_.shape().kv_heads);
    check_tokens("append", v, ledger_.shape().kv_heads);
    done.appended = true;
    if (stage_ == stage::prompt) {
      prompt_.append(layer, k, v);
      return;
    }
    auto const keys = kv_view_of(store_.keys(layer));
    auto const values = kv_view_of(store_.values(layer));
    for (row_step const& step : steps_) {
      for (index_t head = 0; head < ledger_.shape().kv_heads; ++head) {
        index_t const lane = ledger_.lane(step.row, layer, head);
        lane_slots<Policy> const slots = ledger_.slots_of(lane);
        for (index_t j = 0; j < step.count; ++j) {
          index_t const slot = ledger_.new_slots(lane)[static_cast<std::size_t>(j)];
          index_t const token = step.first + j;
          storage_.put_key(keys, step.row, head, slot, slots.view(slot), k(token, head));
          storage_.put_value(values, step.row, head, slot, v(token, head));
          if constexpr (scores_keys<Policy>) {
            policy().score_key(slots.state(slot),
                               dot(k(token, head), k(token, head), k.channels, 1));
          }
        }
      }
    }
  }

  /// Attention of the step's queries, [token, head, channel] in and out; the policy observes.
  ///
  /// @param watch  called with an `attention_record` per query and KV head
  template <class Watcher = no_watcher>
  void attend(index_t layer,
              token_view<float const> q,
              token_view<float> out,
              Watcher&& watch = {}) requires by_slot {
    layer_progress& done = progress(layer, "attend");
    if (!done.appended || done.observed) {
      throw std::logic_error("adore: attend: layer " + std::to_string(layer) +
                             (done.observed ? " has been attended already" : " lacks its append"));
    }
    check_heads("attend", q.heads);
    check_tokens("attend", q, q.heads);
    check_tokens("attend", out, q.heads);
    done.observed = true;
    if (stage_ == stage::prompt) {
      prompt_.attend(layer, q, out, storage_, options_.reduction, scale());
      if (reach() != scope::model) finish_prompt_layer(layer);
      return;
    }
    auto const keys = kv_view_of(store_.keys(layer));
    auto const values = kv_view_of(store_.values(layer));
    for (row_step const& step : steps_) {
      storage_.begin_row(keys, step.row, [&](index_t head) {
        index_t const lane = ledger_.lane(step.row, layer, head);
        return attended_lane<Policy>{
            ledger_.slots_of(lane), order_.slots(lane), order_.positions(lane)};
      });
      for (index_t j = 0; j < step.count; ++j) {
        attend_query(layer, step, j, keys, values, q, out, watch);
      }
    }
  }

  /// Hands over the attention of an engine that attends by itself.
  ///
  /// @param weights  [token, query head, column], probabilities; rows `token_stride`,
  ///                 `head_stride` apart, `channels` = number of columns
  /// @param columns  [column] position in each column, -1 for a hole; empty: column = slot
  void observe(index_t layer,
               token_view<float const> weights,
               std::span<position_t const> columns = {}) {
    layer_progress& done = progress(layer, "observe");
    if (done.observed)
      throw std::logic_error("adore: observe: layer " + std::to_string(layer) +
                             " has been observed already");
    check_heads("observe", weights.heads);
    if (weights.tokens != static_cast<index_t>(queries_.size())) {
      throw std::logic_error("adore: observe: weights of " + std::to_string(weights.tokens) +
                             " tokens for a step of " + std::to_string(queries_.size()));
    }
    if (!columns.empty() && columns.size() != static_cast<std::size_t>(weights.channels)) {
      throw std::logic_error("adore: observe: one position per column is needed");
    }
    done.observed = true;
    if constexpr (observes_attention<Policy>) {
      for (row_step const& step : steps_) {
        for (index_t j = 0; j < step.count; ++j) {
          for (index_t head = 0; head < ledger_.shape().kv_heads; ++head) {
            observe_head(layer, step, j, head, weights, columns);
          }
        }
      }
    }
  }

  /// Ends the step with all its tokens accepted.
  void end_step() { end_step(std::span<index_t const>{}); }
  /// Ends the step; of row i's tokens the first accepted[i] stay, the others never were.
  ///
  /// @param accepted  one number per row of `begin_step`, or empty: all
  void end_step(std::span<index_t const> accepted) {
    if (stage_ == stage::idle) throw std::logic_error("adore: end_step: no step has begun");
    check_complete(accepted);
    if (stage_ == stage::prompt) {
      if (reach() == scope::model) finish_prompt_layer(0);
      ledger_.advance(steps_.front().row, prompt_.tokens());
      for_lanes(steps_.front().row, [&](index_t lane) { ledger_.finish_prompt(lane); });
      stage_ = stage::idle;
      return;
    }
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      row_step const& step = steps_[i];
      index_t const stay = accepted.empty() ? step.count : accepted[i];
      for_lanes(step.row, [&](index_t lane) {
        order_.drop_newest(lane, step.count - stay);
        ledger_.commit(lane, stay, combined_weights(lane, stay));
      });
      ledger_.advance(step.row, stay);
    }
    stage_ = stage::idle;
    settle();
  }

  // ------------------------------------------------------------------ prompts and their likes

  /// Bytes of the staging area that a dense prompt needs.
  std::size_t prompt_staging_bytes(index_t tokens) const {
    return prompt_stage<Policy>::bytes(tokens, ledger_.shape(), reach());
  }
  /// A dense prompt of an empty row: `append` and `attend` of all its tokens per layer, then
  /// `end_step` selects once.
  ///
  /// @throws std::length_error naming the bytes, if the staging area is larger than allowed
  void begin_prompt(index_t row,
                    index_t count,
                    std::span<index_t const> tokens = {}) requires by_slot {
    require_idle("begin_prompt");
    row_tokens const whole{row, count, tokens};
    check_row(whole);
    if (ledger_.next_position(row) != 0) {
      throw std::logic_error("adore: begin_prompt: row " + std::to_string(row) +
                             " has seen tokens; a later prompt enters by continue_with");
    }
    if (prompt_staging_bytes(count) > options_.staging_limit_bytes) {
      throw std::length_error("adore: a dense prompt of " + std::to_string(count) +
                              " tokens needs " + std::to_string(prompt_staging_bytes(count)) +
                              " bytes of staging; the limit is " +
                              std::to_string(options_.staging_limit_bytes) + "; use chunks");
    }
    ledger_.forget_released();
    steps_.assign(1, {row, count, 0});
    queries_.clear();
    for (index_t j = 0; j < count; ++j) queries_.push_back({row, j, j});
    prompt_.begin(ledger_, row, whole);
    if constexpr (numbers_tokens<Policy>) {
      for (index_t j = 0; j < count; ++j) {
        queries_[static_cast<std::size_t>(j)].rotary = prompt_.rotary(j);
      }
    }
    layers_done_.assign(static_cast<std::size_t>(ledger_.shape().layers), {});
    stage_ = stage::prompt;
  }
  /// Runs a prompt in the cache's prompt mode.
  ///
  /// @param forward  `void (std::span<index_t const> tokens)`: all layers' append and attend
  template <class Forward>
  void prompt(index_t row, std::span<index_t const> tokens, Forward&& forward) requires by_slot {
    if (tokens.empty()) return;
    if (options_.prompt != prompt_mode::full_then_select) {
      continue_with(row, tokens, forward);
      return;
    }
    begin_prompt(row, static_cast<index_t>(tokens.size()), tokens);
    forward(tokens);
    end_step();
  }
  /// Feeds more known tokens to a row, `max_new` at a time (`streamed`: one at a time).
  template <class Forward>
  void continue_with(index_t row, std::span<index_t const> tokens, Forward&& forward) {
    auto const chunk = options_.prompt == prompt_mode::streamed
                           ? std::size_t{1}
                           : static_cast<std::size_t>(options_.max_new);
    for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
      auto const part = tokens.subspan(begin, std::min(chunk, tokens.size() - begin));
      row_tokens const step{row, static_cast<index_t>(part.size()), part};
      begin_step({&step, 1});
      forward(part);
      end_step();
    }
  }

  // ------------------------------------------------------------------ budgets

  /// Changes the budget of every lane of a row; a smaller one releases at once.
  void set_budget(index_t row, index_t budget) {
    require_idle("set_budget");
    ledger_.forget_released();
    for_lanes(row, [&](index_t lane) { ledger_.set_budget(lane, budget); });
    settle();
  }
  /// ... of one lane.
  void set_budget(index_t row, index_t layer, index_t kv_head, index_t budget) {
    require_idle("set_budget");
    ledger_.forget_released();
    ledger_.set_budget(ledger_.lane(row, layer, kv_head), budget);
    settle();
  }
  /// Makes room for `tokens` more at once, so that the budget holds while they come.
  ///
  /// Source: StreamingLLM's `evict_for_space`; sinks stay even if the room is too small.
  void reserve(index_t row, index_t tokens) {
    require_idle("reserve");
    ledger_.forget_released();
    for_lanes(row, [&](index_t lane) {
      index_t const budget = ledger_.budget(lane);
      if (budget == unbounded) return;
      lane_view const view = ledger_.view_of(lane, ledger_.next_position(row) - 1);
      index_t const first = candidates_of(policy(), view).first;
      ledger_.shrink(lane, std::max(std::min(first, budget), budget - tokens));
    });
    settle();
  }

  // ------------------------------------------------------------------ what is there

  /// Positions in the lane of a KV head, ascending.
  std::vector<position_t> kept(index_t row, index_t layer = 0, index_t kv_head = 0) const {
    return ledger_.kept(ledger_.lane(row, layer, kv_head));
  }
  /// What the last step, or the last change of a budget, released.
  std::span<released_token const> released() const noexcept { return ledger_.released(); }

 private:
  enum class stage : std::uint8_t { idle, step, prompt };
  struct row_step {
    index_t row, count, first;  // first: number of its first token in the step
  };
  struct query_record {
    index_t row;
    position_t position;
    position_t rotary = position;
  };
  struct layer_progress {
    bool appended = false, observed = false;
  };

  // ---- set-up

  static Policy checked(Policy const& policy) {
    policy.validate();
    return policy;
  }
  static constexpr position_scheme default_scheme() {
    if constexpr (requires { Policy::default_positions; }) {
      return Policy::default_positions;
    } else {
      return position_scheme::original;
    }
  }
  kv_shape ledger_shape() const { return store_.shape(); }
  scope reach(Policy const& policy) const {
    (void)policy;
    scope const wanted = options_.reach.value_or(Policy::default_scope);
    if (wanted <= Store::finest_scope) return wanted;
    if (options_.coarsest_available) return Store::finest_scope;
    constexpr char const* names[] = {"model", "layer", "kv_head"};
    throw std::invalid_argument(std::string("adore: scope ") + names[static_cast<int>(wanted)] +
                                " is asked for, but this store releases at scope " +
                                names[static_cast<int>(Store::finest_scope)] +
                                " at the finest; ask for that, or set coarsest_available");
  }
  index_t lanes() const { return ledger_.shape().sequences * ledger_.lanes_per_row(); }
  index_t lanes_in_row() const { return ledger_.lanes_per_row(); }
  void check_budget(index_t lane) const {
    index_t budget = policy().budget();
    if constexpr (budgets_lanes<Policy>) {
      budget = policy().lane_budget(ledger_.shape(), ledger_.layer_of(lane), ledger_.head_of(lane));
    }
    if constexpr (budgets_prompt<Policy>) budget = std::min(budget, policy().prompt_budget());
    if (options_.max_new < 1) {
      throw std::invalid_argument("adore: max_new = " + std::to_string(options_.max_new) +
                                  ": must be at least 1");
    }
    if (budget != unbounded && budget > ledger_.slots() - (by_slot ? options_.max_new : 0)) {
      throw std::invalid_argument("adore: budget = " + std::to_string(budget) + ": the store has " +
                                  std::to_string(ledger_.slots()) +
                                  " slots per lane, and budget + max_new = " +
                                  std::to_string(budget + options_.max_new) + " are needed");
    }
  }
  float scale() const {
    return options_.attention_scale != 0.0F
               ? options_.attention_scale
               : 1.0F / std::sqrt(static_cast<float>(ledger_.shape().channels));
  }

  // ---- checks of a call

  void require_idle(char const* what) const {
    if (stage_ != stage::idle) {
      throw std::logic_error(std::string("adore: ") + what + ": a step is under way; end it first");
    }
  }
  void check_row(row_tokens const& row) const {
    if (row.row < 0 || row.row >= ledger_.shape().sequences || !ledger_.is_open(row.row)) {
      throw std::logic_error("adore: row " + std::to_string(row.row) +
                             " holds no sequence; open it first");
    }
    bool const given = row.tokens.size() == static_cast<std::size_t>(row.count);
    if (!row.tokens.empty() && !given) {
      throw std::logic_error("adore: row " + std::to_string(row.row) + " brings " +
                             std::to_string(row.count) + " tokens but names " +
                             std::to_string(row.tokens.size()));
    }
    if (reads_tokens<Policy> && !given) {
      throw std::logic_error("adore: this policy reads token ids; give them to begin_step");
    }
  }
  void check_rows(std::span<row_tokens const> rows) const {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      check_row(rows[i]);
      if (rows[i].count < 1 || rows[i].count > options_.max_new) {
        throw std::logic_error("adore: begin_step: " + std::to_string(rows[i].count) +
                               " new tokens for row " + std::to_string(rows[i].row) +
                               "; max_new = " + std::to_string(options_.max_new));
      }
      for (std::size_t k = 0; k < i; ++k) {
        if (rows[k].row == rows[i].row) {
          throw std::logic_error("adore: begin_step: row " + std::to_string(rows[i].row) +
                                 " is named twice");
        }
      }
      index_t const first = rows[i].row * lanes_in_row();
      for (index_t lane = first; lane < first + lanes_in_row(); ++lane) {
        if (by_slot && ledger_.slots() - ledger_.occupied(lane) < rows[i].count) {
          throw std::length_error("adore: row " + std::to_string(rows[i].row) + " is full: " +
                                  std::to_string(ledger_.slots()) + " slots, all but " +
                                  std::to_string(ledger_.slots() - ledger_.occupied(lane)) +
                                  " occupied; give the store more slots or the policy a budget");
        }
      }
    }
  }
  layer_progress& progress(index_t layer, char const* what) {
    if (stage_ == stage::idle) {
      throw std::logic_error(std::string("adore: ") + what + ": no step has begun");
    }
    if (layer < 0 || layer >= ledger_.shape().layers) {
      throw std::logic_error(std::string("adore: ") + what + ": layer " + std::to_string(layer) +
                             " of " + std::to_string(ledger_.shape().layers));
    }
    return layers_done_[static_cast<std::size_t>(layer)];
  }
  template <class T>
  void check_tokens(char const* what, token_view<T> view, index_t heads) const {
    if (view.tokens != static_cast<index_t>(queries_.size()) || view.heads != heads ||
        view.channels != ledger_.shape().channels) {
      throw std::logic_error(std::string("adore: ") + what + ": a tensor is [" +
                             std::to_string(view.tokens) + ", " + std::to_string(view.heads) +
                             ", " + std::to_string(view.channels) + "], [" +
                             std::to_string(queries_.size()) + ", " + std::to_string(heads) + ", " +
                             std::to_string(ledger_.shape().channels) + "] is needed");
    }
  }
  void check_heads(char const* what, index_t heads) const {
    if (heads < 1 || heads % ledger_.shape().kv_heads != 0) {
      throw std::logic_error(std::string("adore: ") + what + ": " + std::to_string(heads) +
                             " query heads are no multiple of " +
                             std::to_string(ledger_.shape().kv_heads) + " KV heads");
    }
  }
  void check_complete(std::span<index_t const> accepted) const {
    for (std::size_t layer = 0; layer < layers_done_.size(); ++layer) {
      layer_progress const& done = layers_done_[layer];
      if ((observes_attention<Policy> || stage_ == stage::prompt) && !done.observed) {
        throw std::logic_error("adore: end_step: layer " + std::to_string(layer) +
                               " was neither attended nor observed");
      }
      if (scores_keys<Policy> && !done.appended) {
        throw std::logic_error("adore: end_step: layer " + std::to_string(layer) +
                               " lacks its append");
      }
    }
    if (accepted.empty()) return;
    if (stage_ == stage::prompt || accepted.size() != steps_.size()) {
      throw std::logic_error("adore: end_step: one accepted count per row of begin_step is needed");
    }
    for (std::size_t i = 0; i < accepted.size(); ++i) {
      if (accepted[i] < 0 || accepted[i] > steps_[i].count) {
        throw std::logic_error("adore: end_step: " + std::to_string(accepted[i]) + " of " +
                               std::to_string(steps_[i].count) + " tokens accepted");
      }
    }
  }

  // ---- parts of a step

  template <class Action>
  void for_lanes(index_t row, Action&& action) {
    for (index_t i = 0; i < lanes_in_row(); ++i) action(row * lanes_in_row() + i);
  }
  void enter(index_t lane, row_tokens const& row) {
    lane_slots<Policy> const slots = ledger_.slots_of(lane);
    for (index_t j = 0; j < row.count; ++j) {
      index_t const slot = ledger_.new_slots(lane)[static_cast<std::size_t>(j)];
      order_.append(lane, slot, slots.positions[slot]);
      if constexpr (reads_tokens<Policy>) {
        policy().hear(slots.state(slot),
                      *slots.lane_state,
                      slots.view(slot),
                      row.tokens[static_cast<std::size_t>(j)]);
      }
      if constexpr (numbers_tokens<Policy>) {
        slots.rotary[slot] = policy().rotary_position(slots.state(slot));
      }
    }
  }
  void number_queries() {
    for (row_step const& step : steps_) {
      index_t const lane = ledger_.lane(step.row, 0, 0);
      for (index_t j = 0; j < step.count; ++j) {
        index_t const slot = ledger_.new_slots(lane)[static_cast<std::size_t>(j)];
        queries_[static_cast<std::size_t>(step.first + j)].rotary =
            ledger_.rotary(lane)[static_cast<std::size_t>(slot)];
      }
    }
  }

  template <class Keys, class Values, class Watcher>
  void attend_query(index_t layer,
                    row_step const& step,
                    index_t j,
                    Keys keys,
                    Values values,
                    token_view<float const> q,
                    token_view<float> out,
                    Watcher& watch) {
    index_t const kv_heads = ledger_.shape().kv_heads;
    lanes_attended_.clear();
    for (index_t head = 0; head < kv_heads; ++head) {
      index_t const lane = ledger_.lane(step.row, layer, head);
      std::size_t const visible =
          order_.slots(lane).size() - static_cast<std::size_t>(step.count - 1 - j);
      lanes_attended_.push_back({ledger_.slots_of(lane),
                                 order_.slots(lane).first(visible),
                                 order_.positions(lane).first(visible)});
    }
    index_t const token = step.first + j;
    float const* const query =
        storage_.turn_query(q(token, 0),
                            q.heads,
                            q.channels,
                            queries_[static_cast<std::size_t>(token)].rotary,
                            static_cast<index_t>(lanes_attended_.front().slots.size()) - 1);
    attention_(
        policy(),
        keys,
        values,
        step.row,
        layer,
        lanes_attended_,
        query,
        out(token, 0),
        q.heads,
        scale(),
        options_.reduction,
        [&](index_t head, index_t rank, index_t) { return storage_.turned_key(head, rank); },
        [&](index_t head, std::span<float const> weights) {
          attended_lane<Policy> const& seen = lanes_attended_[static_cast<std::size_t>(head)];
          watch(attention_record{token, step.row, layer, head, seen.positions, weights});
          if constexpr (observes_attention<Policy>) {
            float* const sum = pending_.row(ledger_.lane(step.row, layer, head), j);
            for (std::size_t i = 0; i < weights.size(); ++i) {
              sum[seen.slots[i]] += weights[i];
            }
          }
        });
  }

  void observe_head(index_t layer,
                    row_step const& step,
                    index_t j,
                    index_t head,
                    token_view<float const> weights,
                    std::span<position_t const> columns) {
    index_t const group = weights.heads / ledger_.shape().kv_heads;
    index_t const lane = ledger_.lane(step.row, layer, head);
    reduced_.resize(static_cast<std::size_t>(weights.channels));
    for (index_t member = 0; member < group; ++member) {
      reduce_head(options_.reduction,
                  reduced_.data(),
                  weights(step.first + j, head * group + member),
                  weights.channels,
                  member,
                  group);
    }
    float* const sum = pending_.row(lane, j);
    auto const positions = order_.positions(lane);
    if (columns.empty()) {
      for (index_t const slot : order_.slots(lane)) {
        if (slot < weights.channels) sum[slot] += reduced_[static_cast<std::size_t>(slot)];
      }
      return;
    }
    for (std::size_t column = 0; column < columns.size(); ++column) {
      auto const place = std::lower_bound(positions.begin(), positions.end(), columns[column]);
      if (place == positions.end() || *place != columns[column]) continue;
      sum[order_.slots(lane)[static_cast<std::size_t>(place - positions.begin())]] +=
          reduced_[column];
    }
  }

  float const* combined_weights(index_t lane, index_t accepted) {
    if constexpr (observes_attention<Policy>) {
      return pending_.combine(
          lane, accepted, [&](index_t later) { return query_weight_of(policy(), later); });
    } else {
      return nullptr;
    }
  }

  /// After decisions: the order, the store and the place of what is left.
  void settle() {
    auto const released = ledger_.released();
    for (std::size_t i = 0; i < released.size();) {
      index_t const lane = released[i].lane;
      left_.clear();
      for (; i < released.size() && released[i].lane == lane; ++i) {
        order_.remove(lane, released[i].position);
        left_.push_back(released[i].position);
      }
      std::sort(left_.begin(), left_.end());
      tell_store(lane, left_);
      if constexpr (by_slot) {
        if (options_.compact != compaction::slot_reuse) compact_lane(lane);
      }
    }
  }
  void tell_store(index_t lane, std::span<position_t const> positions) {
    scope const at = reach();
    store_.release({ledger_.row_of(lane),
                    at == scope::model ? -1 : ledger_.layer_of(lane),
                    at == scope::kv_head ? ledger_.head_of(lane) : -1,
                    positions});
  }
  void compact_lane(index_t lane) {
    auto const order = order_.slots(lane);
    kv_shape const& shape = ledger_.shape();
    bool const all_layers = reach() == scope::model;
    bool const all_heads = reach() != scope::kv_head;
    index_t const first_layer = all_layers ? 0 : ledger_.layer_of(lane);
    index_t const last_layer = all_layers ? shape.layers - 1 : first_layer;
    index_t const first_head = all_heads ? 0 : ledger_.head_of(lane);
    index_t const last_head = all_heads ? shape.kv_heads - 1 : first_head;
    for (index_t layer = first_layer; layer <= last_layer; ++layer) {
      for (index_t head = first_head; head <= last_head; ++head) {
        adore::compact(
            options_.compact, kv_view_of(store_.keys(layer)), ledger_.row_of(lane), head, order);
        adore::compact(
            options_.compact, kv_view_of(store_.values(layer)), ledger_.row_of(lane), head, order);
      }
    }
    std::vector<index_t> new_slot_of(static_cast<std::size_t>(shape.slots), -1);
    for (std::size_t i = 0; i < order.size(); ++i) {
      new_slot_of[static_cast<std::size_t>(order[i])] = static_cast<index_t>(i);
    }
    ledger_.move(lane, new_slot_of);
    order_.assign(lane, ledger_.positions(lane));
  }
  void finish_prompt_layer(index_t layer) requires by_slot {
    prompt_.select(ledger_, layer, storage_, store_);
    index_t const row = steps_.front().row;
    index_t const heads = ledger_.lane_heads();
    for (index_t head = 0; head < heads; ++head) {
      index_t const lane = ledger_.lane(row, layer, head);
      order_.assign(lane, ledger_.positions(lane));
    }
  }
  template <class T>
  static void copy_row(kv_view<T> view, index_t from, index_t to) {
    for (index_t head = 0; head < view.kv_heads; ++head) {
      for (index_t slot = 0; slot < view.slots; ++slot) {
        for (index_t c = 0; c < view.channels; ++c) {
          view(to, head, slot)[c * view.channel_stride] =
              view(from, head, slot)[c * view.channel_stride];
        }
      }
    }
  }

  Store store_;
  cache_options options_;
  ledger<Policy> ledger_;
  slot_order order_;
  pending_weights pending_;
  key_storage<Policy> storage_;
  prompt_stage<Policy> prompt_;
  query_attention<Policy> attention_;
  stage stage_ = stage::idle;
  std::vector<row_step> steps_;
  std::vector<query_record> queries_;        // [token of the step]
  std::vector<layer_progress> layers_done_;  // [layer]
  std::vector<row_tokens> every_row_;
  std::vector<attended_lane<Policy>> lanes_attended_;
  std::vector<float> reduced_;
  std::vector<position_t> left_;
};

}  // namespace adore
