// SPDX-License-Identifier: Apache-2.0
// TOVA against its worked table, for one layer of two heads.
#include "adore/policies/tova.hpp"

#include "support/cache_driver.hpp"
#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

namespace adore::testing {

namespace {

table const head_0 = lists(
    "16 | 9 7 | 7 4 5 | 5 4 4 3 | 6 1 4 2 3 | 8 2 2 3 1 | 4 2 3 3 4 | 1 5 2 4 4 | "
    "3 3 4 2 4 | 10 1 1 2 2");
table const head_1 = lists(
    "16 | 12 4 | 8 4 4 | 6 3 4 3 | 4 3 2 4 3 | 7 3 3 2 1 | 4 2 3 3 4 | 1 3 4 4 4 | "
    "2 2 3 5 4 | 0 6 5 2 3");
table const kept_sets =
    lists("0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 3 4 | 0 3 4 6 | 3 4 6 7 | 4 6 7 8 | 4 6 7 9");
position_list const evicted{1, 5, 2, 0, 3, 8};

}  // namespace

TEST_CASE("TOVA keeps what the last query attends most, over all heads of the layer") {
  // the two heads are one group, one group each, and in every reduction that orders alike
  for (index_t const kv_heads : {1, 2}) {
    for (gqa_reduction const reduction : {gqa_reduction::sum, gqa_reduction::mean}) {
      cache_driver driver(tova{.size = 4}, 2, kv_heads, {.reduction = reduction});
      for (std::size_t n = 0; n < kept_sets.size(); ++n) {
        auto const attended = driver.attended();
        auto const released =
            driver.step({{sixteenths(attended, head_0[n]), sixteenths(attended, head_1[n])}});
        CHECK(released == (n < 4 ? position_list{} : position_list{evicted[n - 4]}));
        CHECK(driver.kept() == kept_sets[n]);
      }
    }
  }
}

TEST_CASE("heads with sets of their own would disagree") {
  table const* const heads[] = {&head_0, &head_1};
  position_list const would_evict{6, 4};
  for (std::size_t head = 0; head < 2; ++head) {
    cache_driver driver(tova{.size = 4});
    for (std::size_t n = 0; n < 9; ++n) {
      // what both heads decided together: sums of rows, in units of 1/16 too
      position_list sum = head_0[n];
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += head_1[n][i];
      driver.step_row(sixteenths(driver.attended(), sum));
    }
    CHECK(driver.step_row(sixteenths(driver.attended(), (*heads[head])[9])) ==
          position_list{would_evict[head]});
  }
}

TEST_CASE("only the last accepted query of a chunk decides, and it decides all victims") {
  std::vector<weight_row> const rows{
      {{0, 1.0F}}, {{0, 0.5F}, {1, 0.5F}}, {{0, 0.25F}, {1, 0.5F}, {2, 0.25F}}, {{3, 9.0F}}};
  ledger_driver chunk(tova{.size = 2});
  CHECK(chunk.step(rows, 3) == position_list{0});
  ledger_driver protecting(tova{.size = 1, .protect_newest = true});
  CHECK(protecting.step(rows, 2) == position_list{0});
  CHECK(protecting.step({{{1, 1.0F}, {2, 0.0F}}}) == position_list{1});
}

TEST_CASE("TOVA remembers nothing, and only the order of weights counts") {
  ledger_driver driver(tova{.size = 3});
  ledger_driver doubled(tova{.size = 3});
  position_list const weights{5, 1, 4, 2};
  driver.step_blind(3);
  doubled.step({{}, {}, {{0, 8.0F}, {1, 9.0F}, {2, 7.0F}}});
  weight_row row = sixteenths(driver.attended(), weights);
  CHECK(driver.step({row}) == position_list{1});
  for (auto& weight : row) weight.second *= 2.0F;
  CHECK(doubled.step({row}) == position_list{1});
}

}  // namespace adore::testing
