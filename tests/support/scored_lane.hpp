// SPDX-License-Identifier: Apache-2.0
// Runs the books of one sequence in scope model from scores that are written down, as an engine
// with a controller does: score, commit, and before the next step choose what to rebuild.
#pragma once

#include "adore/eviction/ledger.hpp"
#include "adore/rebuild/choose.hpp"
#include "tables.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace adore::testing {

template <scores_tokens P>
class scored_lane {
 public:
  explicit scored_lane(P policy, index_t slots = 64, index_t max_new = 32)
      : books(policy, {1, 2, 2, slots, 1}, scope::model, max_new) {
    policy.validate();
    REQUIRE(books.lanes_per_row() == 1);
    books.open(0, 0);
  }

  ledger<P> books;

  position_list kept() const { return books.kept(0); }
  position_t next() const { return books.next_position(0); }

  /// The tokens that would be rebuilt for the next one.
  ///
  /// @param scores  [position] at that step, of the next token too or not
  position_list rebuilt(std::vector<float> const& scores, index_t count) const {
    auto const past = static_cast<std::size_t>(next());
    std::vector<std::uint8_t> is_cached(past, 0);
    for (position_t const p : kept()) is_cached[static_cast<std::size_t>(p)] = 1;
    position_list chosen(static_cast<std::size_t>(count));
    auto const known = std::span(scores).first(past);
    chosen.resize(static_cast<std::size_t>(choose_rebuilt(known, is_cached, count, chosen)));
    return chosen;
  }
  /// What the next token attends: kept, rebuilt, itself.
  position_list attended(std::vector<float> const& scores, index_t count) const {
    position_list all = kept();
    for (position_t const p : rebuilt(scores, count)) all.push_back(p);
    return sorted(with(all, next()));
  }

  /// New tokens whose scores, [position], are set once.
  position_list step(std::vector<float> const& scores, index_t count = 1) {
    books.forget_released();
    books.place(0, count);
    for (index_t const slot : books.new_slots(0)) score(slot, scores);
    return end(count);
  }
  /// One new token; all scores are those of this step.
  position_list step_rescored(std::vector<float> const& scores) {
    books.forget_released();
    books.place(0, 1);
    for (index_t slot = 0; slot < books.slots(); ++slot) {
      if (books.positions(0)[static_cast<std::size_t>(slot)] != no_position) score(slot, scores);
    }
    return end(1);
  }

 private:
  void score(index_t slot, std::vector<float> const& scores) {
    lane_slots<P> const slots = books.slots_of(0);
    float const logit = scores.at(static_cast<std::size_t>(slots.positions[slot]));
    books.policy().score(slots.state(slot), logit);
  }
  position_list end(index_t count) {
    books.commit(0, count, nullptr);
    books.advance(0, count);
    position_list released;
    for (released_token const& token : books.released()) released.push_back(token.position);
    return released;
  }
};

}  // namespace adore::testing
