// SPDX-License-Identifier: Apache-2.0
// A lane in a dense prompt: all its tokens before anything is released, and whether those that stay
// have room.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/lane_table.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/prompt_budget.hpp"
#include "adore/order_key.hpp"
#include "adore/token_scores.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace adore {

template <eviction_policy P>
struct prompt_lane {
  index_t number = 0;
  lane_view view{};
  lane_state_of<P>* lane_state = nullptr;
  std::vector<position_t> positions, rotary;  // [token]
  std::vector<slot_state_of<P>> states;       // [token]
  std::vector<float> weights;                 // [token]
  lane_slots<P> slots() {
    return {static_cast<index_t>(positions.size()),
            positions.data(),
            rotary.data(),
            states.data(),
            lane_state};
  }
};

/// The policy has heard the prompt's tokens and scores; the lane's state in the books begins anew.
template <eviction_policy P>
prompt_lane<P> lane_before_attention(ledger<P>& books, index_t number, row_tokens const& whole) {
  auto const n = static_cast<std::size_t>(whole.count);
  prompt_lane<P> lane{.number = number,
                      .view = books.view_of(number, whole.count - 1),
                      .lane_state = books.slots_of(number).lane_state,
                      .positions = {},
                      .rotary = {},
                      .states = std::vector<slot_state_of<P>>(n),
                      .weights = std::vector<float>(n, 0.0F)};
  lane.view.occupied = whole.count;
  lane.view.ends_prompt = true;
  lane.view.budget = prompt_budget(books, number, whole.count);
  *lane.lane_state = {};
  for (index_t j = 0; j < whole.count; ++j) {
    lane.positions.push_back(j);
    lane.rotary.push_back(j);
    if constexpr (reads_tokens<P>) {
      auto const token = static_cast<std::size_t>(j);
      books.policy().hear(lane.states[token], *lane.lane_state, {j, j}, whole.tokens[token]);
      if constexpr (numbers_tokens<P>) {
        lane.rotary[token] = books.policy().rotary_position(lane.states[token]);
      }
    }
  }
  if constexpr (scores_tokens<P>) {
    give_scores(
        books.policy(),
        lane.slots(),
        scores_of(whole, books.shape(), lane.view.layer, lane.view.kv_head, whole.count - 1));
  }
  return lane;
}

/// Looks, before a dense prompt begins, whether those of its tokens that stay have slots; what only
/// attention can tell `ledger::adopt` finds out.
///
/// @throws std::length_error, with nothing changed, if they have not
template <eviction_policy P>
void require_prompt_fits(ledger<P>& books, row_tokens const& whole) {
  books.for_lanes(whole.row, [&](index_t number) {
    if (std::min(whole.count, prompt_budget(books, number, whole.count)) <= books.slots()) return;
    // without a budget; what the policy never keeps may leave room enough (sentinel, strided)
    prompt_lane<P> lane = lane_before_attention(books, number, whole);
    lane_slots<P> const slots = lane.slots();
    candidate_range const range = candidates_of(books.policy(), lane.view);
    index_t stay = 0;
    for (index_t j = 0; j < whole.count; ++j) {
      float const priority =
          priority_of(books.policy(), slots.view(j), lane.view, slots.state(j), *slots.lane_state);
      bool const leaves =
          j >= range.first && j <= range.last && ordered_priority(priority) == ordered_keep_never;
      stay += leaves ? 0 : 1;
    }
    *lane.lane_state = {};
    stay = std::min(stay, lane.view.budget);
    if (stay > books.slots()) {
      lane_table<P>::refuse_prompt(static_cast<std::size_t>(stay), books.slots());
    }
  });
}

}  // namespace adore
