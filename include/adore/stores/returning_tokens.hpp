// SPDX-License-Identifier: Apache-2.0
// Released tokens on their way back into a cache: remembered when they leave, chosen before a step,
// and either computed again by the engine or copied from a tier.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/past_snapshot.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/rebuild/past_tokens.hpp"
#include "adore/rebuild/rebuild_stage.hpp"
#include "adore/rebuild/schedule.hpp"
#include "adore/stores/page_upkeep.hpp"
#include "adore/stores/restore_stage.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/token_scores.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <optional>
#include <span>
#include <stdexcept>

namespace adore {

/// All rows of a cache. Does nothing if no token is to come back.
template <kv_store Store, eviction_policy P>
class returning_tokens {
  static constexpr bool by_slot = slot_store<Store>;

 public:
  returning_tokens(Store& store, rebuild_options const& options, index_t rows)
      : most_(static_cast<std::size_t>(options.count)),
        rebuild_(options, rows, by_slot),
        restore_(store) {
    if constexpr (by_slot) {
      if (restores()) restore_.start(rebuild_.tier_limit());
    }
  }

  bool active() const noexcept { return rebuild_.active(); }
  /// Their K and V come from a tier, nothing is computed.
  bool restores() const noexcept { return active() && rebuild_.restores(); }
  /// Those that the engine computes again in this step.
  std::span<rebuilt_token const> computed() const noexcept {
    return restores() ? std::span<rebuilt_token const>{} : rebuild_.entering();
  }
  rebuild_counts const& counts() const noexcept { return rebuild_.counts(); }
  std::size_t tier_bytes() const noexcept requires by_slot { return restore_.bytes(); }

  // ---------------------------------------------------------------- life of a sequence

  void open(index_t row) {
    rebuild_.open(row);
    if constexpr (by_slot) restore_.forget(row);
  }
  void close(index_t row) {
    if constexpr (by_slot) restore_.forget(row);
  }
  void fork(index_t from, index_t to) {
    rebuild_.fork(from, to);
    if constexpr (by_slot) restore_.fork(rebuild_, from, to);
  }

  /// Nothing if no token is to come back.
  std::optional<past_snapshot> save(index_t row) const {
    if (!active()) return std::nullopt;
    past_snapshot saved = rebuild_.save(row);
    if constexpr (by_slot) restore_.save(row, saved);
    return saved;
  }
  /// @throws std::invalid_argument if the row cannot be loaded
  void require_loadable(row_snapshot const& saved) const {
    if (saved.past.has_value() != active()) {
      throw std::invalid_argument(
          active() ? "adore: restore: the snapshot says nothing of released tokens, which may come "
                     "back in this cache"
                   : "adore: restore: the snapshot has released tokens that may come back, and in "
                     "this cache none do");
    }
    if (!active()) return;
    std::size_t bytes = 0;
    if constexpr (by_slot) bytes = restore_.bytes_per_token();
    require_sound(*saved.past,
                  saved.next,
                  saved.positions,
                  {past_tokens<P>::bytes_per_state, by_slot ? most_ : 0, restores(), bytes});
  }
  /// After the row's books.
  ///
  /// @pre `require_loadable` has passed
  void load(ledger<P>& books, index_t row, row_snapshot const& saved) {
    if (!active()) return;
    rebuild_.load(books, row, *saved.past);
    if constexpr (by_slot) restore_.load(rebuild_, row, *saved.past);
  }

  // ---------------------------------------------------------------- one step

  void begin() noexcept { rebuild_.begin(); }
  /// Remembers a row's new tokens, and the scores that came with them.
  ///
  /// @param newest  the last new token
  void hear(ledger<P> const& books, row_tokens const& row, position_t newest) {
    if (!active()) return;
    past_tokens<P>& past = rebuild_.past(row.row);
    past.append(row.tokens);
    if constexpr (scores_tokens<P>) {
      if (row.scores.empty()) return;
      token_scores const scores = scores_of(row, books.shape(), 0, 0, newest);
      for (position_t p = scores.first; p <= newest; ++p) {
        books.policy().score(past.state(p), scores.of(p));
      }
    }
  }
  /// The rows of the step have their new tokens: chooses who comes back and gives them slots.
  void choose(Store& store, ledger<P>& books, slot_order& order, std::span<row_tokens const> rows) {
    if (!active()) return;
    rebuild_.choose(books, order, rows);
    for (row_tokens const& row : rows) release_unused(store, books, row.row);  // fewer have come
    if constexpr (by_slot) {
      if (!restores()) return;
      for (rebuilt_token const& back : rebuild_.entering()) restore_.bring_back(store, back);
    }
  }
  /// Before the row's `commit`, see `rebuild_stage::settle`.
  void settle(
      ledger<P>& books, slot_order& order, index_t row, index_t accepted, float const* weights) {
    rebuild_.settle(books, order, row, accepted, weights);
  }
  /// What the policy has released may come back; its K and V are still in its slots.
  void follow(Store& store, ledger<P>& books) {
    if (!active()) return;
    rebuild_.follow(books);
    if constexpr (by_slot) {
      if (!restores()) return;
      for (released_token const& gone : books.released()) {
        restore_.stow(store, rebuild_, books.row_of(gone.lane), gone.position, gone.slot);
      }
    }
  }
  /// ... after a dense prompt, whose released tokens never had slots.
  ///
  /// @param states  [position] what the policy knows of the prompt's tokens
  /// @param put     `void (position_t, index_t slot)`: a token's K and V go into a slot
  template <class Put>
  void follow_prompt(Store& store,
                     ledger<P>& books,
                     index_t row,
                     std::span<slot_state_of<P> const> states,
                     Put&& put) requires by_slot {
    if (!active()) return;
    rebuild_.follow_prompt(books, row, states);
    if (!restores()) return;
    index_t const free = books.slots() - 1;  // each passes through it
    for (released_token const& gone : books.released()) {
      put(gone.position, free);
      restore_.stow(store, rebuild_, row, gone.position, free);
    }
  }

 private:
  std::size_t most_;  // guests of a row
  rebuild_stage<P> rebuild_;
  restore_stage<Store> restore_;
};

}  // namespace adore
