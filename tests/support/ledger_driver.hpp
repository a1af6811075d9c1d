// SPDX-License-Identifier: Apache-2.0
// Runs the books of one lane from attention rows that are written down, without any K/V: what a
// policy decides, and nothing else.
#pragma once

#include "adore/eviction/ledger.hpp"
#include "tables.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace adore::testing {

/// What a new token brings besides the attention that it receives.
struct token_facts {
  float squared_norm = 0.0F;
  index_t id = 0;
};

template <eviction_policy P>
class ledger_driver {
 public:
  explicit ledger_driver(P policy, std::uint64_t seed = 0, index_t slots = 64, index_t max_new = 16)
      : books(policy, {1, 1, 1, slots, 1}, scope::kv_head, max_new) {
    policy.validate();
    books.open(0, seed);
  }

  ledger<P> books;

  position_list kept() const { return books.kept(0); }
  position_t next() const { return books.next_position(0); }
  /// Kept tokens and the next one: what the next query attends.
  position_list attended() const { return with(kept(), next()); }

  /// rows.size() new tokens, of which `accepted` stay; rows[i] is the attention of the i-th one.
  ///
  /// @return what was released, in the order of the releases
  position_list step(std::vector<weight_row> const& rows,
                     std::optional<index_t> accepted = std::nullopt,
                     std::vector<token_facts> const& tokens = {}) {
    auto const count = static_cast<index_t>(rows.size());
    index_t const stay = accepted.value_or(count);
    books.forget_released();
    books.place(0, count);
    lane_slots<P> const slots = books.slots_of(0);
    for (std::size_t j = 0; j < tokens.size(); ++j) {
      [[maybe_unused]] index_t const slot = books.new_slots(0)[j];
      if constexpr (scores_keys<P>) {
        books.policy().score_key(slots.state(slot), tokens[j].squared_norm);
      }
      if constexpr (reads_tokens<P>) {
        books.policy().hear(slots.state(slot), *slots.lane_state, slots.view(slot), tokens[j].id);
      }
    }
    std::vector<float> weights(static_cast<std::size_t>(slots.slots), 0.0F);
    for (index_t i = 0; i < stay; ++i) {
      float const factor = query_weight_of(books.policy(), stay - 1 - i);
      for (index_t s = 0; s < slots.slots; ++s) {
        auto const& row = rows[static_cast<std::size_t>(i)];
        auto const weight = row.find(slots.positions[s]);
        if (weight != row.end()) weights[static_cast<std::size_t>(s)] += factor * weight->second;
      }
    }
    books.commit(0, stay, observes_attention<P> ? weights.data() : nullptr);
    books.advance(0, stay);
    return released();
  }
  /// Tokens that attend nothing.
  position_list step_blind(index_t count = 1) {
    return step(std::vector<weight_row>(static_cast<std::size_t>(count)));
  }
  position_list step_token(token_facts token) { return step({weight_row{}}, 1, {token}); }

  position_list released() const {
    position_list result;
    for (released_token const& token : books.released()) result.push_back(token.position);
    return result;
  }
  position_list set_budget(index_t budget) {
    books.forget_released();
    books.set_budget(0, budget);
    return released();
  }

  /// State of a kept token.
  slot_state_of<P>& state(position_t position) {
    lane_slots<P> const slots = books.slots_of(0);
    for (index_t s = 0; s < slots.slots; ++s) {
      if (slots.positions[s] == position) return slots.state(s);
    }
    FAIL("position " << position << " is not kept");
    return slots.state(0);
  }
};

}  // namespace adore::testing
