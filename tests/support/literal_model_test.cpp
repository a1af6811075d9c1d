// SPDX-License-Identifier: Apache-2.0
// The literal model against tables worked out by hand: what checks the library is checked first.
#include "literal_model.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace literal;
using ints = std::vector<int>;
using table = std::vector<ints>;

/// The next token's row in units of 1/16, in ascending position order of kept + new.
row sixteenths(lane const& l, ints const& weights) {
  ints attended = l.kept();
  attended.push_back(l.newest() + 1);
  REQUIRE(attended.size() == weights.size());
  row r;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    r[attended[i]] = static_cast<float>(weights[i]) / 16.0F;
  }
  return r;
}

/// One token that looks at nothing.
std::vector<release> step_blind(lane& l, token what = {}) {
  return l.step({row{}}, 1, {what});
}

ints positions(std::vector<release> const& released) {
  ints all;
  for (release const& r : released) all.push_back(r.position);
  return all;
}

ints range(int first, int end) {
  ints all;
  for (int p = first; p < end; ++p) all.push_back(p);
  return all;
}

std::vector<row> blind(int n) {
  return std::vector<row>(static_cast<std::size_t>(n));
}

ints const none{};

/// "0 | 0 1 | 1 2": one set or row per step.
table sets(std::string const& text) {
  table all(1);
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word == "|") {
      all.emplace_back();
    } else {
      all.back().push_back(std::stoi(word));
    }
  }
  return all;
}

/// H2O's table: the rows of twelve steps.
table const h2o_rows = sets(
    "16 | 10 6 | 8 3 5 | 6 2 5 3 | 5 1 4 2 4 | 3 2 1 6 4 | 3 1 7 3 2 | 2 3 6 2 3 | "
    "1 1 2 9 3 | 1 0 11 2 2 | 2 2 4 4 4 | 4 4 2 3 3");

}  // namespace

TEST_CASE("literal order: NaN lowest, -0 equals +0, oldest first among equals") {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(is_lower(nan, keep_never));
  CHECK_FALSE(is_lower(keep_never, nan));
  CHECK_FALSE(is_lower(nan, -nan));
  CHECK_FALSE(is_lower(-0.0F, 0.0F));
  CHECK(leaves_before(0.0F, 3, -0.0F, 7, tie::evict_oldest));
  CHECK(leaves_before(-0.0F, 7, 0.0F, 3, tie::evict_newest));
  CHECK(top(2, {{0, 1.0F}, {1, 1.0F}, {2, nan}, {3, 1.0F}}) == ints{3, 1});
}

TEST_CASE("literal keep_all and sliding_window") {
  lane all(keep_all{});
  lane window(sliding_window(3));
  lane nothing(sliding_window(0));
  lane newest_first(sliding_window(3), {.ties = tie::evict_newest});
  for (int n = 0; n < 20; ++n) {
    for (lane* l : {&all, &window, &nothing, &newest_first}) step_blind(*l);
    CHECK(all.kept() == range(0, n + 1));
    CHECK(window.kept() == range(std::max(0, n - 2), n + 1));
    CHECK(newest_first.kept() == window.kept());
    CHECK(nothing.kept() == none);
  }
}

TEST_CASE("literal streaming_llm") {
  table const kept = sets(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 4 | 0 1 3 4 5 | 0 1 4 5 6 | 0 1 5 6 7 | "
      "0 1 6 7 8 | 0 1 7 8 9 | 0 1 8 9 10");
  lane l(streaming_llm(2, 3));
  for (int n = 0; n <= 10; ++n) {
    CHECK(positions(step_blind(l)) == (n < 5 ? none : ints{n - 3}));
    CHECK(l.kept() == kept[static_cast<std::size_t>(n)]);
  }
  lane prompted(streaming_llm(2, 3));
  CHECK(positions(prompted.prompt(8, blind(8))) == ints{2, 3, 4});
  CHECK(prompted.kept() == ints{0, 1, 5, 6, 7});

  lane turn = l;
  CHECK(positions(turn.reserve(2)) == ints{8, 9});
  CHECK(turn.kept() == ints{0, 1, 10});
  CHECK(l.kept() == ints{0, 1, 8, 9, 10});  // the fork did not touch it
  turn.step(blind(2));
  CHECK(turn.kept() == ints{0, 1, 10, 11, 12});
  turn.reserve(4);  // more than the window: later tokens leave one by one
  CHECK(turn.kept() == ints{0, 1});
  CHECK(positions(turn.step(blind(4))) == ints{13});

  CHECK_THROWS_AS(streaming_llm(4, 0), std::invalid_argument);
  lane clamped(streaming_llm(4, 0, true));  // s = m - 1 = 3
  clamped.step(blind(7));
  CHECK(clamped.kept() == ints{0, 1, 2, 6});
}

TEST_CASE("literal strided") {
  table const grid = sets(
      "0 | 0 1 | 0 1 2 | 0 2 3 | 0 3 4 | 0 3 4 5 | 0 3 5 6 | 0 3 6 7 | 0 3 6 7 8 | "
      "0 3 6 8 9 | 0 3 6 9 10");
  std::map<int, int> const evicted{{3, 1}, {4, 2}, {6, 4}, {7, 5}, {9, 7}, {10, 8}};
  lane l(strided(3, 2));
  for (int n = 0; n <= 10; ++n) {
    auto const gone = positions(step_blind(l));
    CHECK(gone == (evicted.contains(n) ? ints{evicted.at(n)} : none));
    CHECK(l.kept() == grid[static_cast<std::size_t>(n)]);
  }

  table const bounded = sets(
      "0 2 3 4 | 0 3 4 5 | 0 3 5 6 | 0 3 6 7 | 3 6 7 8 | 3 6 8 9 | 3 6 9 10 | "
      "6 9 10 11 | 6 9 11 12");
  ints const victims{1, 2, 4, 5, 0, 7, 8, 3, 10};
  lane b(strided(3, 2, 0, strided::bound::drop_oldest_grid, 4));
  b.step(blind(4));
  CHECK(b.kept() == range(0, 4));
  for (std::size_t i = 0; i < bounded.size(); ++i) {
    CHECK(positions(step_blind(b)) == ints{victims[i]});
    CHECK(b.kept() == bounded[i]);
  }

  // The interval becomes 4 at n = 5 and 8 at n = 9.
  table const doubled = sets("0 2 3 | 0 2 4 | 0 4 5 | 0 4 6 | 0 4 7 | 0 4 8 | 0 8 9");
  lane d(strided(2, 1, 0, strided::bound::double_stride, 3));
  d.step(blind(3));
  for (ints const& kept : doubled) {
    step_blind(d);
    CHECK(d.kept() == kept);
    CHECK(d.policy<strided>().interval() == (d.newest() < 5 ? 2 : d.newest() < 9 ? 4 : 8));
  }
  CHECK_THROWS_AS(strided(3, 4, 0, strided::bound::drop_oldest_grid, 4), std::invalid_argument);
}

TEST_CASE("literal Sparse Transformer") {
  table const paper = sets(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 1 2 3 4 | 2 3 4 5 | 3 4 5 6 | 4 5 6 7 | 5 6 7 8 | "
      "6 7 8 9");
  table const code =
      sets("0 | 0 1 | 0 1 2 | 1 2 3 | 2 3 4 | 3 4 5 | 4 5 6 | 5 6 7 | 6 7 8 | 7 8 9");
  table const second{
      {0}, {1}, {2}, {0, 3}, {1, 4}, {2, 5}, {0, 3, 6}, {1, 4, 7}, {2, 5, 8}, {0, 3, 6, 9}};
  for (int i = 0; i < 10; ++i) {
    auto const at = static_cast<std::size_t>(i);
    CHECK(sparse_local(i, 3, local_inclusive::paper) == paper[at]);
    CHECK(sparse_local(i, 3, local_inclusive::code) == code[at]);
    CHECK(sparse_strided(i, 3) == second[at]);
  }
  CHECK(sparse_fixed_block(7, 3) == ints{6, 7});
  CHECK(sparse_fixed_summary(7, 3, 1) == ints{2, 5});
  CHECK(sparse_fixed_summary(8, 3, 2) == ints{1, 2, 4, 5, 7, 8});
}

TEST_CASE("literal h2o") {
  table const mass = sets(
      "16 | 26 6 | 34 9 5 | 40 11 10 3 | 45 12 14 5 4 | 48 16 6 10 4 | "
      "51 17 17 7 2 | 53 20 13 4 3 | 54 21 6 12 3 | 55 21 23 5 2 | 57 25 9 6 4 | "
      "61 29 8 7 3");
  table const kept = sets(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 4 5 | 0 4 5 6 | 0 4 6 7 | 0 4 7 8 | "
      "0 7 8 9 | 0 7 9 10 | 0 7 10 11");
  ints const evicted{1, 3, 2, 5, 6, 4, 8, 9};
  ints const frozen{12, 6, 17, 13, 6, 21, 9, 8};
  ints const heavy_minimum{14, 16, 17, 20, 21, 23, 25, 29};
  lane l(h2o(2, 2));
  lane other(h2o(2, 2), {.ties = tie::evict_newest});
  for (std::size_t n = 0; n < h2o_rows.size(); ++n) {
    ints attended = l.kept();
    attended.push_back(static_cast<int>(n));
    row const r = sixteenths(l, h2o_rows[n]);
    if (n <= 6) other.step({r});
    auto const released = l.step({r});
    CHECK(l.kept() == kept[n]);
    for (std::size_t i = 0; i < attended.size(); ++i) {
      bool const gone = !released.empty() && released[0].position == attended[i];
      float const a = gone ? released[0].priority : l.priority(attended[i]);
      CHECK(a * 16.0F == static_cast<float>(mass[n][i]));
    }
    if (n < 4) {
      CHECK(released.empty());
      continue;
    }
    REQUIRE(released.size() == 1);
    CHECK(released[0].position == evicted[n - 4]);
    CHECK(released[0].priority * 16.0F == static_cast<float>(frozen[n - 4]));
    float const lowest = std::min(l.priority(l.kept()[0]), l.priority(l.kept()[1]));
    CHECK(lowest * 16.0F == static_cast<float>(heavy_minimum[n - 4]));
  }
  CHECK(other.kept() == ints{0, 2, 5, 6});  // evict_newest: the tie of step 6 goes the other way
}

namespace {

float cross_check_weight(int n, int j) {
  if (j == 8 && n >= 8 && n <= 10) return 500.0F;
  return static_cast<float>(1 + (7 * n + 5 * j + 3 * n * j) % 13);
}

row cross_check_row(int n, ints attended) {
  attended.push_back(n);
  float sum = 0.0F;
  for (int const j : attended) sum += cross_check_weight(n, j);
  row r;
  for (int const j : attended) r[j] = cross_check_weight(n, j) / sum;
  return r;
}

std::vector<row> cross_check_prompt() {
  std::vector<row> rows;
  for (int n = 0; n < 8; ++n) rows.push_back(cross_check_row(n, range(0, n)));
  return rows;
}

ints with(ints set, int n) {
  set.push_back(n);
  return set;
}

}  // namespace

TEST_CASE("literal h2o and its published relatives") {
  table const spec = sets(
      "0 1 2 5 6 7 8 | 0 1 2 6 7 8 9 | 0 1 2 7 8 9 10 | 0 1 2 8 9 10 11 | "
      "0 2 8 9 10 11 12 | 0 2 8 10 11 12 13");
  lane l(h2o(3, 3));
  l.prompt(8, cross_check_prompt());
  CHECK(l.kept() == ints{0, 1, 2, 5, 6, 7});
  for (int n = 8; n <= 13; ++n) {
    CHECK(with(l.kept(), n) == spec[static_cast<std::size_t>(n - 8)]);
    l.step({cross_check_row(n, l.kept())});
  }

  table const masked = sets(
      "0 1 2 6 7 8 | 0 1 2 7 8 9 | 0 1 2 8 9 10 | 0 1 2 9 10 11 | 0 2 8 10 11 12 | "
      "0 2 8 11 12 13");
  h2o_mask_simulation simulation(3, 3);
  simulation.step(cross_check_prompt(), 8);
  for (int n = 8; n <= 13; ++n) {
    CHECK(with(simulation.attended(), n) == masked[static_cast<std::size_t>(n - 8)]);
    simulation.step({cross_check_row(n, simulation.attended())}, 1);
    CHECK(simulation.resident() == n + 1);
  }

  // FlexGen: `heavy` are slots; the oldest local token takes the victim's slot unconditionally.
  table const flexgen = sets(
      "0 1 2 6 7 8 | 0 2 6 7 8 9 | 0 2 7 8 9 10 | 0 2 8 9 10 11 | 0 8 9 10 11 12 | "
      "0 8 10 11 12 13");
  ints const flexgen_evicts{1, 6, 7, 2, 9, 10};
  std::map<int, float> acc;
  for (row const& r : cross_check_prompt()) {
    for (auto const& [j, p] : r) acc[j] += p;
  }
  std::map<int, float> candidates = acc;
  for (int const j : {6, 7}) candidates.erase(j);
  ints heavy = top(3, candidates);  // of [0, s - hh_k], here 0..5
  std::sort(heavy.begin(), heavy.end());
  ints local{6, 7};
  for (int n = 8; n <= 13; ++n) {
    ints past = heavy;
    past.insert(past.end(), local.begin(), local.end());
    auto attended = with(past, n);
    std::sort(attended.begin(), attended.end());
    CHECK(attended == flexgen[static_cast<std::size_t>(n - 8)]);
    for (auto const& [j, p] : cross_check_row(n, past)) acc[j] += p;
    std::size_t victim = 0;
    for (std::size_t i = 1; i < heavy.size(); ++i) {
      if (acc[heavy[i]] < acc[heavy[victim]]) victim = i;
    }
    CHECK(heavy[victim] == flexgen_evicts[static_cast<std::size_t>(n - 8)]);
    heavy[victim] = local.front();
    local = {local.back(), n};
  }

  lane frozen(h2o_algorithm_1(6));
  for (int n = 0; n < 20; ++n) {
    // Attention over the old set alone once k tokens are there.
    frozen.step({n < 6 ? cross_check_row(n, frozen.kept()) : [&] {
      row r = cross_check_row(n, frozen.kept());
      r.erase(n);
      return r;
    }()});
  }
  CHECK(frozen.kept() == range(0, 6));
  row self_weight;  // a weight on the token itself counts for nothing
  for (int const j : frozen.kept()) self_weight[j] = 0.125F;
  self_weight[20] = 0.25F;
  CHECK(positions(frozen.step({self_weight})) == ints{20});
}

TEST_CASE("literal h2o_mask_simulation: prunes one step late, a masked token may come back") {
  h2o_mask_simulation s(1, 1);
  s.step({{{0, 1.0F}}}, 1);
  s.step({{{0, 0.5F}, {1, 0.5F}}}, 1);
  CHECK(s.attended() == ints{0, 1});  // the next query attends heavy + recent + 1 once
  s.step({{{0, 0.0F}, {1, 0.25F}, {2, 0.75F}}}, 1);
  CHECK(s.attended() == ints{0});  // 1.5 against 0.75; 2 is masked for this step, keeps 0.75
  CHECK(s.score(1) == 0.0F);
  CHECK(s.score(2) == 0.75F);
  s.step({{{0, 0.0F}, {3, 1.0F}}}, 1);
  CHECK(s.attended() == ints{0});
  h2o_mask_simulation zero(2, 1);  // fewer than `heavy` positive scores: zeros return, newest first
  zero.step(std::vector<row>(5), 5);
  CHECK(zero.attended() == ints{2, 3});
}

TEST_CASE("literal decayed_h2o and h2o_per_age, several queries in one call") {
  // Two calls: 1 query, then 2 queries with factor 1/2.
  lane l(decayed_h2o(8, 0, 0.5F));
  l.step({{{0, 1.0F}}});
  l.step({{{0, 0.75F}, {1, 0.25F}}, {{0, 0.5F}, {1, 0.25F}, {2, 0.25F}}});
  CHECK(l.priority(0) == 1.0F * 0.25F + 0.5F * 0.75F + 0.5F);
  CHECK(l.priority(1) == 0.5F * 0.25F + 0.25F);
  CHECK(l.priority(2) == 0.25F);
  CHECK(lane(decayed_h2o::of_budget(8)).policy<decayed_h2o>().protected_newest() == 2);

  lane age(h2o_per_age(2, 0));
  age.step({{{0, 1.0F}}});
  age.step({{{0, 0.5F}, {1, 0.5F}}});
  CHECK(age.priority(0) == 0.75F);
  CHECK(age.priority(1) == 0.5F);
  // mass 0: 1.75, 1: 0.625, 2: 0.125 over ages 3, 2, 1: the newest has the least.
  CHECK(positions(age.step({{{0, 0.25F}, {1, 0.125F}, {2, 0.125F}}})) == ints{2});

  // Rejected tokens vanish with their observations; their positions are used again.
  lane draft(h2o(8, 0));
  draft.step({{{0, 1.0F}}});
  draft.step({{{0, 0.5F}, {1, 0.5F}}, {{0, 0.25F}, {1, 0.25F}, {2, 0.5F}}, {{3, 1.0F}}}, 1);
  CHECK(draft.kept() == ints{0, 1});
  CHECK(draft.priority(0) == 1.5F);
  CHECK(draft.priority(1) == 0.5F);
  draft.step({{{0, 1.0F}, {2, 2.0F}}}, 0);
  CHECK(draft.priority(0) == 1.5F);
  draft.step({{{0, 0.5F}, {2, 0.5F}}});
  CHECK(draft.kept() == ints{0, 1, 2});
  CHECK(draft.priority(2) == 0.5F);
}

TEST_CASE("literal tova") {
  table const head_0 = sets(
      "16 | 9 7 | 7 4 5 | 5 4 4 3 | 6 1 4 2 3 | 8 2 2 3 1 | 4 2 3 3 4 | 1 5 2 4 4 | "
      "3 3 4 2 4 | 10 1 1 2 2");
  table const head_1 = sets(
      "16 | 12 4 | 8 4 4 | 6 3 4 3 | 4 3 2 4 3 | 7 3 3 2 1 | 4 2 3 3 4 | 1 3 4 4 4 | "
      "2 2 3 5 4 | 0 6 5 2 3");
  table const kept = sets(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 3 4 | 0 3 4 6 | 3 4 6 7 | 4 6 7 8 | "
      "4 6 7 9");
  ints const evicted{1, 5, 2, 0, 3, 8};
  lane l(tova(4));
  for (std::size_t n = 0; n < kept.size(); ++n) {
    if (n == 9) {  // head scope: memoryless, so a fork per head tells what it would evict
      lane a = l;
      lane b = l;
      CHECK(positions(a.step({sixteenths(l, head_0[n])})) == ints{6});
      CHECK(positions(b.step({sixteenths(l, head_1[n])})) == ints{4});
    }
    ints sum = head_0[n];
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += head_1[n][i];
    auto const released = positions(l.step({sixteenths(l, sum)}));
    CHECK(released == (n < 4 ? none : ints{evicted[n - 4]}));
    CHECK(l.kept() == kept[n]);
  }

  // A chunk: only the last accepted row decides, all victims at once.
  lane chunk(tova(2));
  std::vector<row> const rows{
      {{0, 1.0F}}, {{0, 0.5F}, {1, 0.5F}}, {{0, 0.25F}, {1, 0.5F}, {2, 0.25F}}, {{3, 9.0F}}};
  CHECK(positions(chunk.step(rows, 3)) == ints{0});
  lane safe(tova(1, true));
  CHECK(positions(safe.step(rows, 2)) == ints{0});
  CHECK(positions(safe.step({{{1, 1.0F}, {2, 0.0F}}})) == ints{1});
}

TEST_CASE("literal snapkv") {
  // n = 8, w = 2: the two last rows give the prefix votes [4,1,0,6,2,3] / 16.
  auto rows = blind(8);
  for (int i = 0; i < 6; ++i) rows[static_cast<std::size_t>(i)][0] = 1.0F;  // outside the window
  rows[6] = {{0, 3 / 16.0F}, {1, 1 / 16.0F}, {3, 2 / 16.0F}, {5, 3 / 16.0F}, {6, 7 / 16.0F}};
  rows[7] = {{0, 1 / 16.0F}, {3, 4 / 16.0F}, {4, 2 / 16.0F}, {6, 1 / 16.0F}, {7, 8 / 16.0F}};
  auto const prompted = [&](snapkv::pool pooling, snapkv::then after = snapkv::then::none) {
    lane l(snapkv(2, 5, 3, pooling, after));
    l.prompt(8, rows);
    return l;
  };
  CHECK(prompted(snapkv::pool::none).kept() == ints{0, 3, 5, 6, 7});
  CHECK(prompted(snapkv::pool::avg).kept() == ints{2, 3, 4, 6, 7});
  CHECK(prompted(snapkv::pool::max).kept() == ints{2, 3, 4, 6, 7});
  CHECK_THROWS_AS(snapkv(5, 5, 3), std::invalid_argument);

  lane stays = prompted(snapkv::pool::none);
  stays.step(blind(2));
  CHECK(stays.kept() == ints{0, 3, 5, 6, 7, 8, 9});
  lane window = prompted(snapkv::pool::none, snapkv::then::window);
  CHECK(positions(window.step(blind(2))) == ints{0, 3});
  // Votes of 6, which leaves the window: 8/16. Of the kept prefix 5 has the fewest, 3/16.
  lane heavy = prompted(snapkv::pool::none, snapkv::then::h2o);
  CHECK(positions(step_blind(heavy)) == ints{5});
  CHECK(positions(heavy.step({{{0, 0.25F}, {9, 0.75F}}})) == ints{3});
}

TEST_CASE("literal key_norm, adaptive_release, random") {
  std::vector<float> const norms{3, 1, 2, 5, 4};
  lane l(key_norm(3));
  lane at_once(key_norm(3));
  std::vector<token> tokens;
  for (std::size_t n = 0; n < norms.size(); ++n) {
    tokens.push_back({.key_norm = norms[n]});
    step_blind(l, tokens.back());
    if (n >= 2) CHECK(l.kept() == ints{0, 1, 2});
  }
  at_once.prompt(5, blind(5), tokens);
  CHECK(at_once.kept() == ints{0, 1, 2});
  lane recent(key_norm(3, 1));
  recent.prompt(5, blind(5), tokens);
  CHECK(recent.kept() == ints{1, 2, 4});

  std::vector<float> const sigma{
      .95F, .30F, .80F, .60F, .10F, .70F, .60F, .20F, .85F, .05F, .65F, .40F};
  table const paper = sets(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 | 0 2 3 5 | 0 2 5 6 | 0 2 5 6 | 0 2 5 8 | "
      "0 2 5 8 | 0 2 5 8 | 0 2 5 8");
  // p = 1: C_{n-1} as the table gives it for n = 5 and 8..11.
  std::map<std::size_t, ints> const protecting{{4, {0, 2, 3, 4}},
                                               {7, {0, 2, 5, 7}},
                                               {8, {0, 2, 5, 8}},
                                               {9, {0, 2, 8, 9}},
                                               {10, {0, 2, 8, 10}}};
  lane a(adaptive_release(4, 0, 0));
  lane p(adaptive_release(4, 1, 0));
  for (std::size_t n = 0; n < sigma.size(); ++n) {
    step_blind(a, {.score = sigma[n]});
    step_blind(p, {.score = sigma[n]});
    CHECK(a.kept() == paper[n]);
    if (protecting.contains(n)) CHECK(p.kept() == protecting.at(n));
  }

  auto const draw = [](std::uint64_t seed, int position) {
    return static_cast<float>((static_cast<std::uint64_t>(position) * 37U + seed) % 101U);
  };
  lane streamed(reservoir(4, draw));
  lane dense(reservoir(4, draw));
  streamed.open(5);
  dense.open(5);
  for (int n = 0; n < 30; ++n) step_blind(streamed);
  dense.prompt(30, blind(30));
  CHECK(streamed.kept() == dense.kept());

  lane uniform(
      uniform_victim(2, [](std::uint64_t, int newest, std::size_t candidates, int evicted) {
        CHECK(newest == 4);
        CHECK(candidates == static_cast<std::size_t>(5 - evicted));
        return evicted == 0 ? candidates - 1 : std::size_t{1};
      }));
  CHECK(positions(uniform.step(blind(5))) == ints{4, 1, 2});
}

TEST_CASE("literal sentinel") {
  auto const o = role::ordinary;
  std::vector<role> const roles{o, o, role::open, o, o, role::close, o};  // a b <CL> c d <CR> e
  table const sees = sets("0 | 0 1 | 2 | 0 1 3 | 0 1 3 4 | 2 3 4 5 | 0 1 5 6");
  for (int query = 0; query < 7; ++query) {
    ints seen;
    for (int key = 0; key < 7; ++key) {
      if (sentinel_sees(roles, query, key)) seen.push_back(key);
    }
    CHECK(seen == sees[static_cast<std::size_t>(query)]);
  }
  CHECK(sentinel_positions(roles) == ints{0, 1, 1, 2, 3, 3, 4});
  CHECK(sentinel_positions({role::open, o}) == ints{0, 0});

  lane l(sentinel(0));
  lane tail(sentinel(2));
  for (int n = 0; n < 8; ++n) {
    token const what{.kind = n < 7 ? roles[static_cast<std::size_t>(n)] : o};
    CHECK(positions(step_blind(l, what)) == (n == 5 ? ints{2, 3, 4} : none));
    CHECK(positions(step_blind(tail, what)) == (n == 7 ? ints{2, 3, 4} : none));
    if (n == 5) CHECK(l.kept() == ints{0, 1, 5});
  }
}

TEST_CASE("literal dynamic top-K") {
  std::vector<float> const logits{2.0F, -1.0F, 0.5F, 0.5F, 0.0F};
  CHECK(top_k_of_head(logits, 2) == ints{0, 3});  // tie 2, 3: newer
  CHECK(top_k_of_head(logits, 2, true) == ints{0, 4});
  CHECK(top_k_of_head(logits, 5) == range(0, 5));
  CHECK(top_k_of_head(logits, 99) == range(0, 5));
  float captured = 0.0F;
  for (int k = 1; k <= 5; ++k) {
    float mass = 0.0F;
    for (int const j : top_k_of_head(logits, k))
      mass += softmax(logits)[static_cast<std::size_t>(j)];
    CHECK(mass >= captured);
    captured = mass;
  }
  // A sure head outvotes: probabilities about (1, 0, 0) and (0.2, 0.4, 0.4).
  std::vector<std::vector<float>> const group{{20.0F, 0.0F, 0.0F}, {0.0F, 0.7F, 0.7F}};
  CHECK(top_k_of_kv_head(group, 1) == ints{0});
  CHECK(top_k_of_layer(group, 2) == ints{0, 2});
  CHECK(top_k_of_head(group[1], 1) == ints{2});
}

TEST_CASE("literal uniform top-K labels") {
  auto const layer = [](ints const& weights) {
    std::vector<float> w;
    for (int const x : weights) w.push_back(static_cast<float>(x) / 16.0F);
    return w;
  };
  layer_weights const query{
      layer({5, 1, 4, 0, 3, 3}), layer({6, 2, 1, 0, 4, 3}), layer({1, 5, 2, 0, 2, 6})};
  CHECK(top_k(query[0], 2) == ints{0, 2});
  CHECK(top_k(query[1], 2) == ints{0, 4});
  CHECK(top_k(query[2], 2) == ints{1, 5});
  CHECK(uniform_top_k({query}, 4) == ints{0, 5, 4, 1});
  CHECK(uniform_top_k({query}, 4, label_fill::none) == ints{0, 5, 4, 1});
  CHECK(uniform_top_k({query}, 6).size() == 6);
  // Only two tokens have votes when all layers agree.
  layer_weights const agreed{query[0], query[0]};
  CHECK(uniform_top_k({agreed}, 4) == ints{0, 2, 5, 4});
  CHECK(uniform_top_k({agreed}, 4, label_fill::none) == ints{0, 2});
  // Aggregate: token 0 gets 2 votes of 2 queries, token 1 one vote of the one query that sees it.
  std::vector<layer_weights> const two{{{1.0F}}, {{0.75F, 0.25F}}, {{0.25F, 0.5F, 0.25F}}};
  CHECK(uniform_top_k(two, 2) == ints{0, 1});
  CHECK(uniform_top_k(two, 3, label_fill::none, label_normalise::visible_count) == ints{0, 1});
}

TEST_CASE("literal PyramidKV and Ada-KV budgets") {
  auto const sum = [](ints const& budgets) {
    int total = 0;
    for (int const b : budgets) total += b;
    return total;
  };
  ints const repo = pyramid_repo(128, 8, 32, 4096);
  CHECK(repo.front() == 234);
  CHECK(repo[1] == 227);
  CHECK(repo.back() == 17);
  CHECK(sum(repo) == 4016);
  ints const exact = pyramid_exact(120, 32);
  CHECK(exact.front() == 234);
  CHECK(exact.back() == 6);
  CHECK(sum(exact) == 3840);
  for (std::size_t l = 1; l < exact.size(); ++l) CHECK(exact[l] <= exact[l - 1]);
  CHECK(pyramid_exact(7, 1, 2) == ints{7});
  CHECK(pyramid_exact(5, 3, 2) ==
        ints{8, 5, 2});  // 7.5, 5, 2.5: the equal rests go to the lower layer
  CHECK(pyramid_repo(128, 8, 2, 100) == ints{92, 92});
  CHECK(pyramid_repo(128, 8, 2, 200) == ints{120, 120});
  CHECK(pyramid_repo(128, 8, 2, 241) == ints{233, 7});
  CHECK_THROWS_AS(pyramid_exact(120, 32, 0), std::invalid_argument);

  std::vector<std::vector<float>> const scores{{8, 1, 1, 1, 1, 0}, {4, 4, 3, 3, 2, 1}};
  CHECK(ada_counts(scores, 3) == ints{1, 5});
  CHECK(ada_budgets(scores, 3) == ints{1, 5});
  CHECK(ada_budgets_code(scores, 3) == ints{1, 4});
  CHECK(ada_budgets_paper(scores, 3) == ints{3, 3});
  CHECK(ada_counts({{3, 9}, {0, 3}}, 1) == ints{1, 1});  // tie of the 3s: the newer position
  CHECK(ada_counts({{0, 3}, {9, 3}}, 1) == ints{1, 1});  // at one position: the lower head
  fraction const half{1, 2};
  CHECK(ada_budgets_code(scores, 3, half) == ints{2, 4});                  // 1.5, 3.5
  CHECK(ada_budgets_code({{3, 2, 1}, {3, 2, 1}}, 3, half) == ints{2, 2});  // 2.5, 2.5
}

TEST_CASE("literal lane: protection, keep_never, budgets, blocks") {
  // Only protected tokens are left: newest group first, oldest first in each.
  lane l(streaming_llm(2, 3));
  l.step(blind(9));
  CHECK(positions(l.set_budget(4)) == ints{6});
  CHECK(positions(l.set_budget(1)) == ints{7, 8, 0});
  CHECK(l.set_budget(3).empty());
  l.step(blind(3));  // 9, 10, 11 are protected as newest, 1 as first
  CHECK(l.kept() == ints{1, 10, 11});
  CHECK(positions(l.set_budget(0)) == ints{10, 11, 1});

  // keep_never leaves below budget, a NaN only as the first victim.
  float const infinite = std::numeric_limits<float>::infinity();
  float const nan = std::numeric_limits<float>::quiet_NaN();
  lane k(key_norm(4, 1));
  CHECK(step_blind(k, {.key_norm = infinite}).empty());  // protected
  CHECK(positions(step_blind(k, {.key_norm = nan})) == ints{0});
  for (int n = 2; n < 5; ++n) step_blind(k, {.key_norm = 1.0F});
  CHECK(k.kept() == ints{1, 2, 3, 4});
  CHECK(positions(step_blind(k, {.key_norm = 1.0F})) == ints{1});
  CHECK(positions(step_blind(k, {.key_norm = 1.0F})) == ints{2});  // a tie: the oldest

  // Blocks of 2, budget 5: {0,1}, {2,3}, {4,5} with maxima 3, 2, 4.
  std::vector<token> tokens;
  for (float const s : {1.0F, 3.0F, 2.0F, 1.0F, 4.0F, 0.0F}) tokens.push_back({.score = s});
  lane b(adaptive_release(5, 0, 0), {.granule = 2});
  CHECK(positions(b.prompt(6, blind(6), tokens)) == ints{2, 3});
  CHECK(b.kept() == ints{0, 1, 4, 5});
  step_blind(b, {.score = -1.0F});
  CHECK(positions(step_blind(b, {.score = -1.0F})) == ints{6, 7});
  lane open_block(adaptive_release(4, 0, 0), {.granule = 2});
  tokens[4].score = -5.0F;  // lowest, but its block is not complete
  tokens.resize(5);
  CHECK(positions(open_block.prompt(5, blind(5), tokens)) == ints{2, 3});
  // Neither a block with a sink nor an incomplete one: the plain rule releases one token.
  lane s(adaptive_release(3, 1, 1), {.granule = 4});
  CHECK(positions(s.prompt(4, blind(4), {{}, {.score = 2.0F}, {.score = 1.0F}, {}})) == ints{2});

  lane forked = b;
  forked.open(3);
  CHECK(forked.kept() == none);
  CHECK(forked.newest() == -1);
  CHECK(b.kept() == ints{0, 1, 4, 5});
  CHECK_THROWS_AS(b.prompt(1, blind(1)), std::logic_error);
  CHECK_THROWS_AS(b.step({{{2, 1.0F}}}), std::invalid_argument);  // 2 has been released
}
