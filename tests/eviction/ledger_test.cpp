// SPDX-License-Identifier: Apache-2.0
// The books can be instantiated explicitly, as an engine does that keeps its compile time down, and
// lanes are numbered as they say.
#include "adore/eviction/ledger.hpp"

#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/h2o_mask_simulation.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/sentinel.hpp"
#include "adore/policies/strided_doubling.hpp"
#include "adore/policies/tova.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <stdexcept>
#include <vector>

// Every member compiles, those that a policy of its kind never calls included.
template class adore::ledger<adore::h2o>;                    // observes
template class adore::ledger<adore::h2o_mask_simulation>;    // marks
template class adore::ledger<adore::in_blocks<adore::h2o>>;  // releases blocks
template class adore::ledger<adore::keep_all>;               // no state, no budget
template class adore::ledger<adore::key_norm>;               // a queue
template class adore::ledger<adore::sentinel>;               // reads tokens
template class adore::ledger<adore::strided_doubling>;       // relents

namespace adore::testing {

TEST_CASE("lanes are numbered row by row, and each layer and head of a row lies in one of them") {
  kv_shape const shape{.sequences = 3, .layers = 2, .kv_heads = 4, .slots = 5};
  for (scope const reach : {scope::model, scope::layer, scope::kv_head}) {
    ledger<keep_all> const books({}, shape, reach, 1);
    std::vector<int> visits(static_cast<std::size_t>(shape.layers * shape.kv_heads));
    for (index_t lane = 0; lane < 3 * books.lanes_per_row(); ++lane) {
      CHECK(books.row_of(lane) == lane / books.lanes_per_row());
      lane_extent const extent = books.extent_of(lane);
      CHECK(extent.first_layer == books.layer_of(lane));
      CHECK(extent.first_head == books.head_of(lane));
      for (index_t layer = extent.first_layer; layer < extent.end_layer; ++layer) {
        for (index_t head = extent.first_head; head < extent.end_head; ++head) {
          CHECK(books.lane(books.row_of(lane), layer, head) == lane);
          ++visits[static_cast<std::size_t>(layer * shape.kv_heads + head)];
        }
      }
    }
    CHECK(visits == std::vector<int>(visits.size(), 3));  // once in each row
  }
}

TEST_CASE("a lane adopts no more tokens than it has slots") {
  ledger<keep_all> books({}, {.sequences = 2, .slots = 3}, scope::model, 1);
  books.open(0, 0);
  std::vector<position_t> const kept{0, 1, 2, 3};
  std::vector<slot_state_of<keep_all>> const states(4);
  CHECK_THROWS_WITH_AS(books.adopt(0, kept, kept, states),
                       "adore: begin_prompt: 4 tokens of the prompt stay; a lane has 3 slots",
                       std::length_error);
  CHECK(books.kept(0).empty());
  CHECK(books.positions(1)[0] == no_position);  // the lane behind it
}

TEST_CASE("a step that the policy does not observe leaves scores as they are") {
  ledger<tova> books({.size = 2}, {.slots = 3}, scope::model, 1);
  books.open(0, 0);
  auto const step = [&](float const* weights) {
    books.place(0, 1);
    books.commit(0, 1, weights);
    books.advance(0, 1);
  };
  float const none[3] = {};
  step(none);
  float const second_strong[] = {0.25F, 0.75F, 0.0F};
  step(second_strong);
  step(nullptr);  // the newcomer has no weight yet, and goes
  CHECK(books.kept(0) == std::vector<position_t>{0, 1});
  float const newcomer_strong[] = {0.25F, 0.125F, 0.625F};
  step(newcomer_strong);
  CHECK(books.kept(0) == std::vector<position_t>{0, 3});
}

}  // namespace adore::testing
