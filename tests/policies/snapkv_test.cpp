// SPDX-License-Identifier: Apache-2.0
// SnapKV's one selection at the end of a dense prompt, and what follows it.
#include "adore/policies/snapkv.hpp"

#include "support/cache_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace adore::testing {

namespace {

/// Eight queries of which the last two give the prefix the votes [4, 1, 0, 6, 2, 3] / 16.
cache_driver<snapkv>::head_rows prompt_rows() {
  cache_driver<snapkv>::head_rows rows;
  for (int i = 0; i < 6; ++i) rows.push_back({{{0, 1.0F}}});  // outside the window: no votes
  rows.push_back({sixteenths({0, 1, 3, 5, 6}, {3, 1, 2, 3, 7})});
  rows.push_back({sixteenths({0, 3, 4, 6, 7}, {1, 4, 2, 1, 8})});
  return rows;
}

cache_driver<snapkv> prompted(vote_pooling pool, after_prompt then = after_prompt::none) {
  cache_driver driver(snapkv{.size = 5, .window = 2, .kernel = 3, .pool = pool, .then = then});
  CHECK(driver.prompt(prompt_rows()).size() == 3);
  return driver;
}

}  // namespace

TEST_CASE("SnapKV keeps the window and what the window attends, pooled over neighbours") {
  CHECK(prompted(vote_pooling::none).kept() == position_list{0, 3, 5, 6, 7});
  CHECK(prompted(vote_pooling::avg).kept() == position_list{2, 3, 4, 6, 7});
  CHECK(prompted(vote_pooling::max).kept() == position_list{2, 3, 4, 6, 7});
}

TEST_CASE("pooled votes: padding with zeros for the mean, with nothing for the maximum") {
  float const votes[] = {4, 1, 0, 6, 2, 3};
  float const mean_of_three[] = {5, 5, 7, 8, 11, 5};
  float const largest[] = {4, 4, 6, 6, 6, 3};
  snapkv const avg{.size = 5, .window = 2, .kernel = 3};
  snapkv const max{.size = 5, .window = 2, .kernel = 3, .pool = vote_pooling::max};
  snapkv const none{.size = 5, .window = 2, .kernel = 3, .pool = vote_pooling::none};
  for (index_t j = 0; j < 6; ++j) {
    CHECK(avg.pooled(votes, 6, j) == mean_of_three[j] / 3.0F);
    CHECK(max.pooled(votes, 6, j) == largest[j]);
    CHECK(none.pooled(votes, 6, j) == votes[j]);
  }
}

TEST_CASE("after the prompt SnapKV releases nothing, or goes on as a window, or as H2O") {
  auto stays = prompted(vote_pooling::none);
  stays.step_row({});
  stays.step_row({});
  CHECK(stays.kept() == position_list{0, 3, 5, 6, 7, 8, 9});
  auto window = prompted(vote_pooling::none, after_prompt::window);
  CHECK(window.step_row({}) == position_list{0});
  CHECK(window.step_row({}) == position_list{3});
  // votes of 6, which leaves the window: 8/16; of the kept prefix 5 has the fewest, 3/16
  auto heavy = prompted(vote_pooling::none, after_prompt::h2o);
  CHECK(heavy.step_row({}) == position_list{5});
  CHECK(heavy.step_row({{0, 0.25F}, {9, 0.75F}}) == position_list{3});
}

TEST_CASE("unless it goes on as H2O, SnapKV no longer listens after the prompt") {
  weight_row const late = {{0, 0.75F}, {3, 0.125F}, {5, 0.125F}};
  for (after_prompt const then : {after_prompt::none, after_prompt::window, after_prompt::h2o}) {
    auto driver = prompted(vote_pooling::none, then);
    auto const states_of_the_prompt = [&] {  // the tokens 5, 6 and 7 stay in all three
      position_list sixteenths;
      auto& cache = driver.cache;
      row_snapshot const saved = cache.snapshot(0);
      for (std::size_t slot = 0; slot < saved.positions.size(); ++slot) {
        if (saved.positions[slot] < 5 || saved.positions[slot] > 7) continue;
        float votes = 0.0F;
        std::memcpy(&votes, saved.slot_states.data() + slot * sizeof(float), sizeof(float));
        sixteenths.push_back(static_cast<position_t>(votes * 16.0F));
      }
      return sixteenths;
    };
    position_list const before = states_of_the_prompt();
    driver.step_row(late);
    CHECK((states_of_the_prompt() == before) == (then != after_prompt::h2o));
  }
  // the votes of the prompt, 4, 6 and 3 sixteenths for 0, 3 and 5, also decide a later shrinking
  auto stays = prompted(vote_pooling::none);
  stays.step_row({{5, 1.0F}});
  stays.cache.set_budget(0, 5);
  CHECK(stays.released() == position_list{8});
  stays.cache.set_budget(0, 4);
  CHECK(stays.released() == position_list{5});
}

TEST_CASE("a prompt within the window or the size loses nothing") {
  for (std::size_t n = 1; n <= 5; ++n) {
    cache_driver driver(snapkv{.size = 5, .window = 2, .kernel = 3});
    cache_driver<snapkv>::head_rows rows(n, {{{0, 1.0F}}});
    CHECK(driver.prompt(rows).empty());
    CHECK(driver.kept() == from_to(0, static_cast<position_t>(n)));
  }
}

TEST_CASE("query heads are reduced before their votes are pooled, or after") {
  // one query in the window; prefix votes [8, 0, 0, 0] of one head, [0, 0, 8, 0] of the other
  cache_driver<snapkv>::head_rows rows(4, {{{0, 1.0F}}, {{0, 1.0F}}});
  rows.push_back({sixteenths({0, 4}, {8, 8}), sixteenths({2, 4}, {8, 8})});
  auto const kept = [&](gqa_order order) {
    cache_driver driver(
        snapkv{.size = 2, .window = 1, .kernel = 3, .pool = vote_pooling::max, .order = order}, 2);
    driver.prompt(rows);
    return driver.kept();
  };
  // the sums' maxima of three are all equal, so the newest stays
  CHECK(kept(gqa_order::reduce_then_pool) == position_list{3, 4});
  // both heads' maxima meet at 1
  CHECK(kept(gqa_order::pool_then_reduce) == position_list{1, 4});
}

}  // namespace adore::testing
