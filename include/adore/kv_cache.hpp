// SPDX-License-Identifier: Apache-2.0
// The facade: a store, a policy, a scope and the books, driven by the events of a step.
#pragma once

#include "adore/attention/append.hpp"
#include "adore/attention/attention_scale.hpp"
#include "adore/attention/key_storage.hpp"
#include "adore/attention/step_attention.hpp"
#include "adore/cache_options.hpp"
#include "adore/cache_set_up.hpp"
#include "adore/cached_rows.hpp"
#include "adore/checked_policy.hpp"
#include "adore/concepts.hpp"
#include "adore/dense_prompt.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/kv_view.hpp"
#include "adore/prompt_entry.hpp"
#include "adore/step_progress.hpp"
#include "adore/step_tokens.hpp"
#include "adore/stores/page_upkeep.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// A KV cache that keeps what its policy chooses.
///
///     cache.open(row, seed);
///     cache.begin_step();              one new token for every open row, or for a list of rows
///     for each layer:
///       cache.append(layer, k, v);
///       cache.attend(layer, q, out);   or observe(layer, weights), if the engine attends by itself
///     cache.end_step();                now the policy decides
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
  static_assert(by_slot || !(scores_keys<Policy> || reads_tokens<Policy>),
                "adore: a policy that looks at keys or token ids needs a store addressed by slot");

 public:
  /// @throws std::invalid_argument if numbers make no sense together, naming field and value
  kv_cache(Store store, Policy policy, cache_options options = {})
      : options_(checked_options(policy, std::move(options))),
        rows_(std::move(store), policy, options_),
        progress_(books().shape(), options_),
        storage_(policy, scheme(), options_.rotation, books().slots()),
        attention_(rows_.books, options_) {
    require_agreement(rows_.store, books(), options_);
  }

  Policy const& policy() const noexcept { return books().policy(); }
  Store& store() noexcept { return rows_.store; }
  Store const& store() const noexcept { return rows_.store; }
  ledger<Policy> const& books() const noexcept { return rows_.books; }
  scope reach() const noexcept { return books().reach(); }
  cache_options const& options() const noexcept { return options_; }
  position_scheme scheme() const noexcept { return scheme_of<Policy>(options_); }

  // ------------------------------------------------------------------ life of a sequence

  /// Begins an empty sequence in a free row. Random policies draw from `seed`, never from the row.
  void open(index_t row, std::uint64_t seed = 0) { between_steps("open").open(row, seed); }
  void close(index_t row) { between_steps("close").close(row); }
  /// `to`, a free row, goes on from what `from` holds now. If the store throws, `to` is still free.
  void fork(index_t from, index_t to) { between_steps("fork").fork(from, to); }
  /// A row as it is now; K/V are the store's to save, in the same slots, those of guests included.
  row_snapshot snapshot(index_t row) const {
    progress_.require_idle("snapshot");
    return rows_.snapshot(row);
  }
  /// Opens a free row as it was saved. In a paged store the slots have memory from now on.
  ///
  /// @throws std::length_error, with the row free as before, if there are too few pages
  void restore(index_t row, row_snapshot const& saved) {
    between_steps("restore").restore(row, saved);
  }

  // ------------------------------------------------------------------ one step

  /// One new token for every open row.
  void begin_step() { begin_step(rows_.one_token_each()); }
  /// New tokens for one row.
  void begin_step(row_tokens const& row) { begin_step(std::span<row_tokens const>(&row, 1)); }
  /// @throws std::logic_error in the middle of a step, for a row that is not open or is named
  ///         twice, or if the policy reads tokens and none are given
  /// @throws std::length_error if a lane has too few free slots, a paged store too few free pages
  ///         (then nothing has begun; shared pages that were copied for rows before stay copied),
  ///         or a sequence is at its end
  void begin_step(std::span<row_tokens const> rows) {
    progress_.begin_step(books(), rows);
    progress_.attempt(
        [&] { reserve_step(rows_.store, rows_.books, rows, options_.rebuild.count); });
    rows_.begin_step();
    tokens_.begin();
    attention_.begin();
    for (row_tokens const& row : rows) {
      tokens_.enter(rows_.books, rows_.order, row);
      rows_.returning.hear(books(), row, books().next_position(row.row) + row.count - 1);
    }
    rows_.returning.choose(rows_.store, rows_.books, rows_.order, rows);
    for (rebuilt_token const& back : rebuilt()) tokens_.number(back.position);
    progress_.add_rebuilt(static_cast<index_t>(rebuilt().size()));
  }

  /// Released tokens that the engine computes again in this step: behind the new ones, where the
  /// store is addressed by slot. A store that chooses slots itself takes them in any order, finds
  /// room for them, reports them to nobody, and lets them go after the step.
  std::span<rebuilt_token const> rebuilt() const noexcept { return rows_.returning.computed(); }
  /// How much has come back since the cache was made.
  rebuild_counts const& rebuild_cost() const noexcept { return rows_.returning.counts(); }
  /// Bytes of released K and V that could come back (schedule `restore`).
  std::size_t tier_bytes() const noexcept requires by_slot { return rows_.returning.tier_bytes(); }

  /// Rotary positions of the step's tokens, [token], for an engine that turns q and k itself.
  std::span<position_t const> positions() const noexcept { return tokens_.rotary(); }

  /// For a store that chooses slots itself: the j-th new token of the row went to `slot`.
  void placed(index_t row, index_t layer, index_t kv_head, index_t j, index_t slot) requires(
      !by_slot) {
    tokens_.enter_placed(rows_.books, rows_.order, books().lane(row, layer, kv_head), j, slot);
  }

  /// Puts the step's K and V of a layer into their slots, [token, kv_head, channel].
  void append(index_t layer,
              token_view<float const> k,
              token_view<float const> v) requires by_slot {
    progress_.append(layer, k, v);
    if (progress_.in_prompt()) return prompt_.append(layer, k, v);
    fresh_layer const fresh{layer, k, v, keys(layer), values(layer)};
    append_new(rows_.books, storage_, fresh, progress_.rows());
    append_rebuilt(storage_, fresh, rebuilt(), progress_.new_tokens());
  }

  /// Attention of the step's queries, [token, head, channel] in and out; the policy observes.
  ///
  /// @param watch  called with an `attention_record` per new token and KV head
  template <class Watcher = no_watcher>
  void attend(index_t layer,
              token_view<float const> q,
              token_view<float> out,
              Watcher&& watch = {}) requires by_slot {
    progress_.attend(layer, q, out);
    if (progress_.in_prompt()) {
      return progress_.attempt([&] { prompt_.attend(rows_, layer, q, out, storage_, options_); });
    }
    attended_layer const at{layer,
                            q,
                            out,
                            keys(layer),
                            values(layer),
                            attention_scale_of(options_.attention_scale, q.channels)};
    attention_.attend_new(
        rows_.books, rows_.order, storage_, at, progress_.rows(), tokens_.rotary(), watch);
    attention_.attend_rebuilt(
        rows_.books, rows_.order, storage_, at, rebuilt(), progress_.new_tokens());
  }

  /// Hands over the attention of an engine that attends by itself.
  ///
  /// @param weights  [token, query head, column], probabilities; rows `token_stride`,
  ///                 `head_stride` apart, `channels` = number of columns
  /// @param columns  [column] position in each column, -1 for a hole; empty: column = slot
  void observe(index_t layer,
               token_view<float const> weights,
               std::span<position_t const> columns = {}) {
    progress_.observe(layer, weights, columns);
    if constexpr (observes_attention<Policy>) {
      attention_.observe(books(), rows_.order, layer, progress_.rows(), weights, columns);
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
    progress_.check_end(books(), accepted);
    if constexpr (by_slot) {  // no other store takes dense prompts
      if (progress_.in_prompt()) {
        progress_.attempt([&] { prompt_.end(rows_, storage_); });
        progress_.end();
        return;
      }
    }
    for (std::size_t i = 0; i < progress_.rows().size(); ++i) {
      row_step const& step = progress_.rows()[i];
      index_t const stay = accepted.empty() ? step.count : accepted[i];
      books().for_lanes(step.row, [&](index_t lane) {
        rows_.reject(lane, step.count - stay);
        tokens_.reject(rows_.books, lane, step, stay);
        float const* const weights = attention_.accepted_weights(policy(), lane, stay);
        rows_.returning.settle(rows_.books, rows_.order, step.row, stay, weights);
        rows_.books.commit(lane, stay, weights);
      });
      rows_.books.advance(step.row, stay);
    }
    progress_.end();
    rows_.end_step(progress_.rows(), !accepted.empty());
  }

  // ------------------------------------------------------------------ prompts and their likes

  /// Bytes of the staging area that a dense prompt needs.
  std::size_t prompt_staging_bytes(index_t tokens) const {
    return prompt_stage<Policy>::bytes(tokens, books().shape(), reach());
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
    progress_.begin_prompt(books(), whole);
    progress_.attempt([&] { prompt_.reserve(rows_, whole, options_); });
    rows_.begin_step();
    tokens_.begin();
    prompt_.begin(rows_, whole, tokens_);
  }
  /// Runs a prompt in the cache's prompt mode; an empty one is allowed.
  ///
  /// @param forward  `void (std::span<index_t const> tokens)`: all layers' append and attend
  template <class Forward>
  void prompt(index_t row, std::span<index_t const> tokens, Forward&& forward) requires by_slot {
    enter_as_prompt(*this, row, tokens, forward);
  }
  /// Feeds more known tokens to a row, `max_new` at a time (`streamed`: one at a time).
  template <class Forward>
  void continue_with(index_t row, std::span<index_t const> tokens, Forward&& forward) {
    enter_in_steps(*this, row, tokens, forward);
  }

  // ------------------------------------------------------------------ budgets and places

  /// Changes the budget of every lane of a row; a smaller one releases at once.
  void set_budget(index_t row, index_t budget) {
    between_steps("set_budget").set_budget(row, budget);
  }
  /// ... of one lane.
  void set_budget(index_t row, index_t layer, index_t kv_head, index_t budget) {
    between_steps("set_budget").set_budget(row, books().lane(row, layer, kv_head), budget);
  }
  /// Makes room for `tokens` more at once, so that the budget holds while they come.
  void reserve(index_t row, index_t tokens) { between_steps("reserve").make_room(row, tokens); }
  /// Moves a row's tokens together, in a store that can: in pages, the emptied ones come free.
  ///
  /// @throws std::logic_error in the middle of a step, or if released tokens may come back, since
  ///         those that are back have their slots
  void compact(index_t row) requires compacting_store<Store> {
    between_steps("compact").compact(row);
  }
  /// For a store that moved its tokens: new_slot_of[old slot], -1 for a free one.
  void moved(index_t row, index_t layer, index_t kv_head, std::span<index_t const> new_slot_of) {
    between_steps("moved").move(books().lane(row, layer, kv_head), new_slot_of);
  }

  // ------------------------------------------------------------------ what is there

  /// Positions in the lane of a KV head, ascending.
  std::vector<position_t> kept(index_t row, index_t layer = 0, index_t kv_head = 0) const {
    return books().kept(books().lane(row, layer, kv_head));
  }
  /// Positions of the released tokens that are back in the row at present, ascending.
  std::vector<position_t> back(index_t row) const { return rows_.back(row); }
  /// What the last step, or the last change of a budget, released.
  std::span<released_token const> released() const noexcept { return books().released(); }

 private:
  cached_rows<Store, Policy>& between_steps(char const* what) {
    progress_.require_idle(what);
    return rows_;
  }
  auto keys(index_t layer) { return kv_view_of(rows_.store.keys(layer)); }
  auto values(index_t layer) { return kv_view_of(rows_.store.values(layer)); }

  cache_options options_;
  cached_rows<Store, Policy> rows_;
  step_progress progress_;
  step_tokens<Policy> tokens_;
  key_storage<Policy> storage_;
  step_attention<Policy> attention_;
  dense_prompt<Store, Policy> prompt_;
};

}  // namespace adore
