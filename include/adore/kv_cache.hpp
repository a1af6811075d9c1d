// SPDX-License-Identifier: Apache-2.0
// The facade: a store, a policy, a scope and the books, driven by the events of a step.
#pragma once

#include "adore/attention/decode_attention.hpp"
#include "adore/attention/key_storage.hpp"
#include "adore/attention/prompt_lane.hpp"
#include "adore/attention/prompt_stage.hpp"
#include "adore/attention/step_attention.hpp"
#include "adore/cache_options.hpp"
#include "adore/checked_policy.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/kv_view.hpp"
#include "adore/rebuild/rebuild_stage.hpp"
#include "adore/rebuild/rebuildable.hpp"
#include "adore/step_progress.hpp"
#include "adore/step_tokens.hpp"
#include "adore/stores/carry_out.hpp"
#include "adore/stores/page_upkeep.hpp"
#include "adore/stores/restore_stage.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/token_scores.hpp"
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
/// after row in the order of `begin_step`; q, k, v and out are [token, head, channel]. If released
/// tokens are rebuilt, those of `rebuilt()` follow the new ones.
template <class Store, class Policy>
class kv_cache {
  using policy_type = typename checked_policy<Policy>::type;
  using store_type = typename checked_store<Store>::type;
  static_assert(!recalls_tokens<Policy>, "adore: this cache does not recall tokens");
  static constexpr bool by_slot = slot_store<Store>;
  static constexpr bool in_pages = paging_store<Store>;
  static_assert(by_slot || !(scores_keys<Policy> || reads_tokens<Policy>),
                "adore: a policy that looks at keys or token ids needs a store addressed by slot");

 public:
  /// @throws std::invalid_argument if numbers make no sense together, naming field and value
  kv_cache(Store store, Policy policy, cache_options options = {})
      : store_(std::move(store)),
        options_(checked(std::move(options))),
        ledger_(checked(policy),
                store_.shape(),
                chosen_scope(),
                options_.max_new,
                by_slot ? placement::by_ledger : placement::by_store,
                by_slot ? options_.rebuild.count : 0),
        order_(store_.shape().sequences * ledger_.lanes_per_row()),
        progress_(store_.shape(), options_.max_new),
        storage_(policy, scheme(), options_.rotation, ledger_.slots()),
        attention_(ledger_, options_.reduction),
        rebuild_(options_.rebuild, store_.shape().sequences, by_slot),
        restore_(store_) {
    if (rebuild_.active()) {
      require_rebuildable<Policy>(options_, by_slot, reach(), scheme());
      if constexpr (by_slot) restore_.start(rebuild_.tier_limit());
    }
    if constexpr (budgets_lanes<Policy>) {
      if (reach() == scope::model && ledger_.shape().layers > 1) {
        throw std::invalid_argument(
            "adore: budgets per layer need lanes of scope layer or kv_head; scope model has one "
            "for "
            "all layers");
      }
    }
    if constexpr (limits_attention<Policy>) {
      if (policy.attention_limit().scope == top_k_scope::layer && reach() == scope::kv_head) {
        throw std::invalid_argument(
            "adore: heads that agree on one set need lanes of scope layer or model");
      }
    }
    if (in_pages && options_.compact != compaction::slot_reuse) {
      throw std::invalid_argument(
          "adore: compact: in pages new tokens fill the holes; leave cache_options.compact at "
          "slot_reuse, and call compact(row) when a row has become smaller");
    }
    for (index_t lane = 0; lane < ledger_.lanes_per_row(); ++lane) check_budget(lane);
  }

  Policy const& policy() const noexcept { return ledger_.policy(); }
  Store& store() noexcept { return store_; }
  Store const& store() const noexcept { return store_; }
  ledger<Policy> const& books() const noexcept { return ledger_; }
  scope reach() const noexcept { return ledger_.reach(); }
  cache_options const& options() const noexcept { return options_; }
  position_scheme scheme() const noexcept { return options_.positions.value_or(default_scheme()); }

  // ------------------------------------------------------------------ life of a sequence

  /// Begins an empty sequence in a free row. Random policies draw from `seed`, never from the row.
  void open(index_t row, std::uint64_t seed = 0) {
    progress_.require_idle("open");
    ledger_.open(row, seed);
    for_lanes(row, [&](index_t lane) { order_.clear(lane); });
    rebuild_.open(row);
    if constexpr (by_slot) restore_.forget(row);
  }
  void close(index_t row) {
    progress_.require_idle("close");
    if constexpr (!by_slot || in_pages) {
      ledger_.require_open(row, "close");
      for_lanes(row, [&](index_t lane) {
        release_from(store_, ledger_, lane, order_.positions(lane), order_.slots(lane));
      });
    }
    ledger_.close(row);
    if constexpr (by_slot) restore_.forget(row);
  }
  /// `to`, a free row, goes on from what `from` holds now. If the store throws, `to` is still free.
  void fork(index_t from, index_t to) {
    progress_.require_idle("fork");
    static_assert(by_slot || forking_store<Store>,
                  "adore: this store cannot fork: it needs 'void fork(index_t from, index_t to)'");
    ledger_.fork(from, to);
    for_lanes(from, [&](index_t lane) {
      order_.copy(lane, lane + (to - from) * ledger_.lanes_per_row());
    });
    if constexpr (forking_store<Store>) {
      try {
        store_.fork(from, to);
      } catch (...) {
        ledger_.close(to);
        throw;
      }
    } else {
      for (index_t layer = 0; layer < ledger_.shape().layers; ++layer) {
        copy_row(kv_view_of(store_.keys(layer)), from, to);
        copy_row(kv_view_of(store_.values(layer)), from, to);
      }
    }
    rebuild_.fork(from, to);
    if constexpr (by_slot) restore_.fork(rebuild_, from, to);
  }
  /// A row's books as they are now; K/V are the store's to save, in the same slots.
  ///
  /// @throws std::logic_error if released tokens may come back: the books do not know them all
  row_snapshot snapshot(index_t row) const {
    progress_.require_idle("snapshot");
    refuse_rebuild("snapshot");
    return ledger_.snapshot(row);
  }
  /// Opens a free row with saved books. In a paged store the slots have memory from now on.
  ///
  /// @throws std::length_error, with the row free as before, if there are too few pages
  void restore(index_t row, row_snapshot const& saved) {
    progress_.require_idle("restore");
    refuse_rebuild("restore");
    ledger_.restore(row, saved);
    if constexpr (in_pages) {
      try {
        reserve_row(store_, ledger_, row);
      } catch (...) {
        ledger_.close(row);
        release_unused(store_, ledger_, row);
        throw;
      }
    }
    for_lanes(row, [&](index_t lane) { order_.assign(lane, ledger_.positions(lane)); });
  }

  // ------------------------------------------------------------------ one step

  /// One new token for every open row.
  void begin_step() {
    std::vector<row_tokens> rows;
    for (index_t row = 0; row < ledger_.shape().sequences; ++row) {
      if (ledger_.is_open(row)) rows.push_back({row});
    }
    begin_step(rows);
  }
  /// New tokens for one row.
  void begin_step(row_tokens const& row) { begin_step(std::span<row_tokens const>(&row, 1)); }
  /// @throws std::logic_error in the middle of a step, for a row that is not open or is named
  ///         twice, or if the policy reads tokens and none are given
  /// @throws std::length_error if a lane has too few free slots, a paged store too few free pages
  ///         (then nothing has begun; shared pages that were copied for rows before stay copied),
  ///         or a sequence is at its end
  void begin_step(std::span<row_tokens const> rows) {
    for (row_tokens const& row : rows) check_tokens(row);
    progress_.begin_step(ledger_, rows, by_slot);
    if constexpr (in_pages) {
      in_step([&] { reserve_step(store_, ledger_, rows, options_.rebuild.count); });
    }
    ledger_.forget_released();
    attention_.begin();
    tokens_.begin();
    rebuild_.begin();
    waiting_.begin();
    for (row_tokens const& row : rows) {
      tokens_.add(row);
      for_lanes(row.row, [&](index_t lane) {
        ledger_.place(lane, row.count);
        if constexpr (by_slot) tokens_.enter(ledger_, order_, lane, row);
      });
      tokens_.number(ledger_, row.row, row.count);
      hear(row);
    }
    rebuild_.choose(ledger_, order_, rows);
    if constexpr (in_pages) {
      if (rebuild_.active()) {
        for (row_tokens const& row : rows) release_unused(store_, ledger_, row.row);
      }
    }
    if constexpr (by_slot) {
      if (rebuild_.restores()) {
        for (rebuilt_token const& back : rebuild_.entering()) restore_.bring_back(store_, back);
        return;
      }
    }
    for (rebuilt_token const& back : rebuild_.entering()) tokens_.number(back.position);
    progress_.add_rebuilt(static_cast<index_t>(rebuild_.entering().size()));
  }

  /// Released tokens that the engine computes again in this step: behind the new ones, where the
  /// store is addressed by slot. A store that chooses slots itself takes them in any order, finds
  /// room for them, reports them to nobody, and lets them go after the step.
  std::span<rebuilt_token const> rebuilt() const noexcept {
    return rebuild_.restores() ? std::span<rebuilt_token const>{} : rebuild_.entering();
  }
  /// How much has come back since the cache was made.
  rebuild_counts const& rebuild_cost() const noexcept { return rebuild_.counts(); }
  /// Bytes of released K and V that could come back (schedule `restore`).
  std::size_t tier_bytes() const noexcept requires by_slot { return restore_.bytes(); }

  /// Rotary positions of the step's tokens, [token], for an engine that turns q and k itself.
  std::span<position_t const> positions() const noexcept { return tokens_.rotary(); }

  /// For a store that chooses slots itself: the j-th new token of the row went to `slot`.
  void placed(index_t row, index_t layer, index_t kv_head, index_t j, index_t slot) requires(
      !by_slot) {
    index_t const lane = ledger_.lane(row, layer, kv_head);
    ledger_.report_placed(lane, j, slot);
    position_t const position = ledger_.next_position(row) + j;
    order_.append(lane, slot, position);
    if constexpr (scores_tokens<Policy>) {
      token_scores const scores =
          waiting_.of(row, ledger_.shape(), ledger_.layer_of(lane), ledger_.head_of(lane));
      if (scores.has(position)) {
        policy().score(ledger_.slots_of(lane).state(slot), scores.of(position));
      }
    }
  }
  /// Moves a row's tokens together, in a store that can: in pages, the emptied ones come free.
  ///
  /// @throws std::logic_error in the middle of a step, or if released tokens may come back, since
  ///         those that are back have their slots
  void compact(index_t row) requires compacting_store<Store> {
    progress_.require_idle("compact");
    ledger_.require_open(row, "compact");
    refuse_rebuild("compact", "and those that are back have their slots");
    for (moved_lane const& lane : store_.compact(row)) {
      moved(row, std::max(lane.layer, 0), std::max(lane.kv_head, 0), lane.new_slot_of);
    }
  }
  /// For a store that moved its tokens: new_slot_of[old slot], -1 for a free one.
  void moved(index_t row, index_t layer, index_t kv_head, std::span<index_t const> new_slot_of) {
    progress_.require_idle("moved");
    index_t const lane = ledger_.lane(row, layer, kv_head);
    ledger_.move(lane, new_slot_of);
    order_.assign(lane, ledger_.positions(lane));
  }

  /// Puts the step's K and V of a layer into their slots, [token, kv_head, channel].
  void append(index_t layer,
              token_view<float const> k,
              token_view<float const> v) requires by_slot {
    index_t const kv_heads = ledger_.shape().kv_heads;
    progress_.require_step("append");
    progress_.check_tensor("append", k, kv_heads);
    progress_.check_tensor("append", v, kv_heads);
    progress_.append(layer);
    if (progress_.in_prompt()) {
      prompt_.append(layer, k, v);
      return;
    }
    auto const keys = kv_view_of(store_.keys(layer));
    auto const values = kv_view_of(store_.values(layer));
    for (step_progress::row_step const& step : progress_.rows()) {
      for (index_t head = 0; head < kv_heads; ++head) {
        index_t const lane = ledger_.lane(step.row, layer, head);
        lane_slots<Policy> const slots = ledger_.slots_of(lane);
        for (index_t j = 0; j < step.count; ++j) {
          index_t const slot = ledger_.new_slots(lane)[static_cast<std::size_t>(j)];
          float const* const key = k(step.first + j, head);
          storage_.put_key(keys, step.row, head, slot, slots.view(slot), key);
          storage_.put_value(values, step.row, head, slot, v(step.first + j, head));
          if constexpr (scores_keys<Policy>) {
            policy().score_key(slots.state(slot), dot(key, key, k.channels, 1));
          }
        }
      }
    }
    index_t token = progress_.new_tokens();
    for (rebuilt_token const& back : rebuilt()) {
      for (index_t head = 0; head < kv_heads; ++head) {
        slot_view const place{back.position, back.position};
        storage_.put_key(keys, back.row, head, back.slot, place, k(token, head));
        storage_.put_value(values, back.row, head, back.slot, v(token, head));
      }
      ++token;
    }
  }

  /// Attention of the step's queries, [token, head, channel] in and out; the policy observes.
  ///
  /// @param watch  called with an `attention_record` per new token and KV head
  template <class Watcher = no_watcher>
  void attend(index_t layer,
              token_view<float const> q,
              token_view<float> out,
              Watcher&& watch = {}) requires by_slot {
    progress_.require_step("attend");
    progress_.check_heads("attend", q.heads);
    progress_.check_tensor("attend", q, q.heads);
    progress_.check_tensor("attend", out, q.heads);
    progress_.attend(layer);
    if (progress_.in_prompt()) {
      prompt_.attend(layer, q, out, storage_, options_.reduction, scale());
      if (reach() != scope::model) finish_prompt(layer);
      return;
    }
    for (step_progress::row_step const& step : progress_.rows()) {
      attention_.attend_row(ledger_,
                            order_,
                            storage_,
                            layer,
                            step.row,
                            step.count,
                            step.first,
                            tokens_.rotary(),
                            kv_view_of(store_.keys(layer)),
                            kv_view_of(store_.values(layer)),
                            q,
                            out,
                            scale(),
                            watch);
    }
    index_t token = progress_.new_tokens();
    for (rebuilt_token const& back : rebuilt()) {
      attention_.attend_rebuilt(ledger_,
                                order_,
                                storage_,
                                layer,
                                back,
                                rebuilt(),
                                options_.rebuild.mask,
                                token++,
                                kv_view_of(store_.keys(layer)),
                                kv_view_of(store_.values(layer)),
                                q,
                                out,
                                scale());
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
    progress_.require_step("observe");
    progress_.check_heads("observe", weights.heads);
    if (weights.tokens != progress_.new_tokens()) {
      throw std::logic_error("adore: observe: weights of " + std::to_string(weights.tokens) +
                             " tokens for a step of " + std::to_string(progress_.new_tokens()));
    }
    if (!columns.empty() && columns.size() != static_cast<std::size_t>(weights.channels)) {
      throw std::logic_error("adore: observe: one position per column is needed");
    }
    progress_.observe(layer);
    if constexpr (observes_attention<Policy>) {
      for (step_progress::row_step const& step : progress_.rows()) {
        for (index_t j = 0; j < step.count; ++j) {
          attention_.observe(ledger_, order_, layer, step.row, j, weights, step.first + j, columns);
        }
      }
    }
  }

  /// Ends the step with all its tokens accepted.
  void end_step() { end_step(std::span<index_t const>{}); }
  /// Ends a step of one row, of whose tokens the first `accepted` stay.
  void end_step(index_t accepted) { end_step(std::span<index_t const>(&accepted, 1)); }
  /// Ends the step; of row i's tokens the first accepted[i] stay, the others never were.
  ///
  /// @param accepted  one number per row of `begin_step`, or empty: all
  void end_step(std::span<index_t const> accepted) {
    progress_.template check_end<Policy>(accepted);
    if constexpr (by_slot) {  // no other store takes dense prompts
      if (progress_.in_prompt()) {
        if (reach() == scope::model) finish_prompt(0);
        index_t const row = progress_.rows().front().row;
        ledger_.advance(row, progress_.tokens());
        for_lanes(row, [&](index_t lane) { ledger_.finish_prompt(lane); });
        if (rebuild_.active()) {
          rebuild_.follow_prompt(ledger_, row, prompt_.states());
          if (rebuild_.restores()) {
            index_t const free = ledger_.slots() - 1;  // each passes through it
            for (released_token const& gone : ledger_.released()) {
              prompt_.put(gone.position, free, storage_, store_);
              restore_.stow(store_, rebuild_, row, gone.position, free);
            }
          }
        }
        if constexpr (in_pages) release_unused(store_, ledger_, row);
        progress_.end();
        return;
      }
    }
    if constexpr (!by_slot) require_placed();
    for (std::size_t i = 0; i < progress_.rows().size(); ++i) {
      step_progress::row_step const& step = progress_.rows()[i];
      index_t const stay = accepted.empty() ? step.count : accepted[i];
      for_lanes(step.row, [&](index_t lane) {
        if constexpr (!by_slot) {  // its cells of rejected tokens come free
          auto const rejected = static_cast<std::size_t>(step.count - stay);
          if (rejected > 0) {
            release_from(store_,
                         ledger_,
                         lane,
                         order_.positions(lane).last(rejected),
                         order_.slots(lane).last(rejected));
          }
        }
        order_.drop_newest(lane, step.count - stay);
        if constexpr (reads_tokens<Policy>) {
          if (stay < step.count) tokens_.unhear(ledger_, lane, step.first, stay);
        }
        float const* const weights = attention_.accepted_weights(policy(), lane, stay);
        rebuild_.settle(ledger_, order_, step.row, stay, weights);
        ledger_.commit(lane, stay, weights);
      });
      ledger_.advance(step.row, stay);
    }
    progress_.end();
    settle();
    if constexpr (in_pages) {
      if (rebuild_.active() || !accepted.empty()) {
        for (step_progress::row_step const& step : progress_.rows()) {
          release_unused(store_, ledger_, step.row);
        }
      }
    }
  }

  // ------------------------------------------------------------------ prompts and their likes

  /// Bytes of the staging area that a dense prompt needs.
  std::size_t prompt_staging_bytes(index_t tokens) const {
    return prompt_stage<Policy>::bytes(tokens, ledger_.shape(), reach());
  }
  /// A dense prompt of an empty row: `append` and `attend` of all its tokens per layer, then
  /// `end_step` selects once.
  ///
  /// @throws std::length_error naming the bytes, if the staging area is larger than allowed, if
  ///         more of the prompt stays than a lane has slots, or if a paged store has too few free
  ///         pages for what the lanes may keep; nothing has begun then. Where attention decides
  ///         how many stay, `attend` or `end_step` says that they are too many, and the row is
  ///         closed
  void begin_prompt(row_tokens const& whole) requires by_slot {
    index_t const row = whole.row;
    index_t const count = whole.count;
    if (prompt_staging_bytes(count) > options_.staging_limit_bytes) {
      throw std::length_error("adore: a dense prompt of " + std::to_string(count) +
                              " tokens needs " + std::to_string(prompt_staging_bytes(count)) +
                              " bytes of staging; the limit is " +
                              std::to_string(options_.staging_limit_bytes) + "; use chunks");
    }
    check_tokens(whole);
    progress_.begin_prompt(ledger_, whole);
    in_step([&] { require_prompt_fits(ledger_, whole); });
    if constexpr (in_pages) {
      bool const to_tier = rebuild_.active() && rebuild_.restores();
      in_step([&] { reserve_prompt(store_, ledger_, whole, to_tier); });
    }
    rebuild_.begin();
    if (rebuild_.active()) rebuild_.past(row).append(whole.tokens);
    if constexpr (scores_tokens<Policy>) score_past(whole, count - 1);
    ledger_.forget_released();
    prompt_.begin(ledger_, row, whole);
    tokens_.begin();
    for (index_t j = 0; j < count; ++j) {
      tokens_.number(numbers_tokens<Policy> ? prompt_.rotary(j) : j);
    }
  }
  /// Runs a prompt in the cache's prompt mode; an empty one is allowed.
  ///
  /// @param forward  `void (std::span<index_t const> tokens)`: all layers' append and attend
  template <class Forward>
  void prompt(index_t row, std::span<index_t const> tokens, Forward&& forward) requires by_slot {
    if (tokens.empty()) return;
    if (options_.prompt != prompt_mode::full_then_select) {
      continue_with(row, tokens, forward);
      return;
    }
    begin_prompt({row, static_cast<index_t>(tokens.size()), tokens});
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
      begin_step(row_tokens{row, static_cast<index_t>(part.size()), part});
      forward(part);
      end_step();
    }
  }

  // ------------------------------------------------------------------ budgets

  /// Changes the budget of every lane of a row; a smaller one releases at once.
  void set_budget(index_t row, index_t budget) {
    decide("set_budget", row, [&](index_t lane) { ledger_.set_budget(lane, budget); });
  }
  /// ... of one lane.
  void set_budget(index_t row, index_t layer, index_t kv_head, index_t budget) {
    index_t const chosen = ledger_.lane(row, layer, kv_head);
    decide("set_budget", row, [&](index_t lane) {
      if (lane == chosen) ledger_.set_budget(lane, budget);
    });
  }
  /// Makes room for `tokens` more at once, so that the budget holds while they come.
  ///
  /// Source: StreamingLLM's `evict_for_space`; sinks stay even if the room is too small.
  void reserve(index_t row, index_t tokens) {
    decide("reserve", row, [&](index_t lane) {
      index_t const budget = ledger_.budget(lane);
      if (budget == unbounded) return;
      lane_view const view = ledger_.view_of(lane, ledger_.next_position(row) - 1);
      index_t const first = candidates_of(policy(), view).first;
      ledger_.shrink(lane, std::max(std::min(first, budget), budget - tokens));
    });
  }

  // ------------------------------------------------------------------ what is there

  /// Positions in the lane of a KV head, ascending.
  std::vector<position_t> kept(index_t row, index_t layer = 0, index_t kv_head = 0) const {
    return ledger_.kept(ledger_.lane(row, layer, kv_head));
  }
  /// Positions of the released tokens that are back in the row at present, ascending.
  std::vector<position_t> back(index_t row) const {
    std::vector<position_t> result;
    for (position_t const p : ledger_.positions(ledger_.lane(row, 0, 0))) {
      if (is_guest(p)) result.push_back(guest_mark(p));
    }
    std::sort(result.begin(), result.end());
    return result;
  }
  /// What the last step, or the last change of a budget, released.
  std::span<released_token const> released() const noexcept { return ledger_.released(); }

 private:
  static Policy checked(Policy const& policy) {
    policy.validate();
    return policy;
  }
  static cache_options checked(cache_options options) {
    require_field(
        options.max_new >= 1, "cache_options.max_new", options.max_new, "must be at least 1");
    return options;
  }
  static constexpr position_scheme default_scheme() {
    if constexpr (requires { Policy::default_positions; }) {
      return Policy::default_positions;
    } else {
      return position_scheme::original;
    }
  }
  scope chosen_scope() const {
    scope const wanted = options_.reach.value_or(Policy::default_scope);
    if (wanted <= Store::finest_scope) return wanted;
    if (options_.coarsest_available) return Store::finest_scope;
    throw std::invalid_argument(std::string("adore: scope ") + word_of(wanted) +
                                " is asked for, but this store releases at scope " +
                                word_of(Store::finest_scope) +
                                " at the finest; ask for that, or set coarsest_available");
  }
  void check_budget(index_t lane) const {
    index_t budget = policy().budget();
    if constexpr (budgets_lanes<Policy>) {
      budget = policy().lane_budget(ledger_.shape(), ledger_.layer_of(lane), ledger_.head_of(lane));
    }
    if constexpr (budgets_prompt_lanes<Policy>) {
      index_t const of_prompt = policy().lane_prompt_budget(
          ledger_.shape(), ledger_.layer_of(lane), ledger_.head_of(lane), unbounded);
      budget = std::min(budget, of_prompt);
    } else if constexpr (budgets_prompt<Policy>) {
      budget = std::min(budget, policy().prompt_budget());
    }
    index_t const room =
        by_slot ? ledger_.slots() - options_.max_new - options_.rebuild.count : store_.capacity();
    if (budget != unbounded && budget > room) {
      throw std::invalid_argument(
          "adore: budget = " + std::to_string(budget) + ": the store has room for " +
          std::to_string(room) + " tokens per lane beside the " +
          std::to_string(options_.max_new + options_.rebuild.count) + " that a step may bring");
    }
  }
  void refuse_rebuild(char const* what,
                      char const* why = "and a snapshot does not hold them") const {
    if (!rebuild_.active()) return;
    throw std::logic_error(std::string("adore: ") + what + ": released tokens may come back, " +
                           why);
  }
  float scale() const {
    return options_.attention_scale != 0.0F
               ? options_.attention_scale
               : 1.0F / std::sqrt(static_cast<float>(ledger_.shape().channels));
  }

  void check_tokens(row_tokens const& row) const {
    check_scores(row, ledger_.shape(), ledger_.next_position(row.row));
    if (!row.scores.empty() && !scores_tokens<Policy>) {
      throw std::logic_error("adore: row " + std::to_string(row.row) +
                             " brings scores, but this policy takes none");
    }
    if (rebuild_.active() && row.tokens.size() != static_cast<std::size_t>(row.count)) {
      throw std::logic_error(
          "adore: row " + std::to_string(row.row) +
          ": tokens that may be rebuilt need their ids; give them to begin_step");
    }
  }
  /// The row's new tokens are in their lanes.
  void hear(row_tokens const& row) {
    if (rebuild_.active()) rebuild_.past(row.row).append(row.tokens);
    if constexpr (scores_tokens<Policy>) {
      if (row.scores.empty()) return;
      position_t const newest = ledger_.next_position(row.row) + row.count - 1;
      for_lanes(row.row, [&](index_t lane) {
        give_scores(
            policy(),
            ledger_.slots_of(lane),
            scores_of(row, ledger_.shape(), ledger_.layer_of(lane), ledger_.head_of(lane), newest));
      });
      score_past(row, newest);
      if constexpr (!by_slot) waiting_.keep(row, ledger_.next_position(row.row));
    }
  }
  void score_past(row_tokens const& row, position_t newest) requires scores_tokens<Policy> {
    if (!rebuild_.active() || row.scores.empty()) return;
    token_scores const scores = scores_of(row, ledger_.shape(), 0, 0, newest);
    for (position_t p = scores.first; p <= newest; ++p) {
      policy().score(rebuild_.past(row.row).state(p), scores.of(p));
    }
  }

  /// If the first thing that a step does fails, it has not begun.
  template <class Action>
  void in_step(Action&& action) {
    try {
      action();
    } catch (...) {
      progress_.end();
      throw;
    }
  }
  template <class Action>
  void for_lanes(index_t row, Action&& action) {
    index_t const first = row * ledger_.lanes_per_row();
    for (index_t lane = first; lane < first + ledger_.lanes_per_row(); ++lane) action(lane);
  }
  void require_placed() {
    for (step_progress::row_step const& step : progress_.rows()) {
      for_lanes(step.row, [&](index_t lane) {
        auto const slots = ledger_.new_slots(lane);
        if (std::find(slots.begin(), slots.end(), -1) == slots.end()) return;
        throw std::logic_error(
            "adore: end_step: the store has not reported by `placed` where all new "
            "tokens of row " +
            std::to_string(step.row) + " are");
      });
    }
  }
  void finish_prompt(index_t layer) requires by_slot {
    index_t const row = progress_.rows().front().row;
    auto const list = [&] {
      for (index_t head = 0; head < ledger_.lane_heads(); ++head) {
        index_t const lane = ledger_.lane(row, layer, head);
        order_.assign(lane, ledger_.positions(lane));
      }
    };
    try {
      prompt_.select(ledger_, storage_, store_);
    } catch (...) {  // some lanes have their tokens, others do not
      list();
      progress_.end();
      if constexpr (in_pages) release_unused(store_, ledger_, row);
      close(row);
      throw;
    }
    list();
  }
  template <class Action>
  void decide(char const* what, index_t row, Action&& action) {
    progress_.require_idle(what);
    ledger_.require_open(row, what);
    ledger_.forget_released();
    for_lanes(row, action);
    settle();
  }
  void settle() {
    rebuild_.follow(ledger_);
    if constexpr (by_slot) {
      if (rebuild_.active() && rebuild_.restores()) {
        for (released_token const& gone : ledger_.released()) {
          restore_.stow(store_, rebuild_, ledger_.row_of(gone.lane), gone.position, gone.slot);
        }
      }
    }
    carry_out(store_, ledger_, order_, options_.compact);
  }

  Store store_;
  cache_options options_;
  ledger<Policy> ledger_;
  slot_order order_;
  step_progress progress_;
  step_tokens<Policy> tokens_;
  key_storage<Policy> storage_;
  step_attention<Policy> attention_;
  prompt_stage<Policy> prompt_;
  rebuild_stage<Policy> rebuild_;
  restore_stage<Store> restore_;
  waiting_scores waiting_;
};

}  // namespace adore
