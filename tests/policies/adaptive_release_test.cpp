// SPDX-License-Identifier: Apache-2.0
// ADORE's release and rebuilding: the worked runs, and what static scores come to (policies.md 14):
// the set has a closed form, rebuilt tokens are the next ranks, and rebuilding R of them attends
// what a cache larger by R would.
#include "adore/policies/adaptive_release.hpp"

#include "support/literal_order.hpp"
#include "support/scored_lane.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace adore::testing {

namespace {

std::vector<float> const worked_scores{
    .95F, .30F, .80F, .60F, .10F, .70F, .60F, .20F, .85F, .05F, .65F, .40F};

/// Scores with ties, and a policy that fits them.
struct random_case {
  adaptive_release policy;
  index_t rebuilt;
  std::vector<float> scores;

  explicit random_case(std::mt19937& random) {
    auto const below = [&](index_t end) {
      return static_cast<index_t>(random() % static_cast<unsigned>(end));
    };
    policy.keep = below(9);
    policy.recent = std::min(below(4), policy.keep);
    policy.sinks = std::min(below(3), policy.keep - policy.recent);
    rebuilt = below(6);
    auto const kinds = 2U + random() % 20U;  // few kinds: many ties
    for (int i = 0; i < 26; ++i) scores.push_back(static_cast<float>(random() % kinds) - 3.0F);
  }
  /// The policy that keeps what this one keeps and rebuilds.
  adaptive_release larger() const {
    adaptive_release result = policy;
    result.keep += rebuilt;
    return result;
  }
  /// The unprotected tokens of 0 .. n, best first, with the sinks in front.
  position_list ranking(position_t n) const {
    std::map<int, float> old;
    for (position_t i = 0; i <= n - policy.recent; ++i) {
      old[i] = i < policy.sinks ? std::numeric_limits<float>::infinity()
                                : scores[static_cast<std::size_t>(i)];
    }
    return literal::top(literal::unbounded, old);
  }
  /// Theorem S.
  position_list kept_after(position_t n) const {
    position_list result = ranking(n);
    result.resize(std::min(result.size(), static_cast<std::size_t>(policy.keep - policy.recent)));
    for (position_t i = std::max(0, n - policy.recent + 1); i <= n; ++i) result.push_back(i);
    return sorted(result);
  }
};

constexpr int cases = 3000;

}  // namespace

TEST_CASE("ADORE's worked run: m = 4, R = 2, nothing protected") {
  table const kept_sets = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 | 0 2 3 5 | 0 2 5 6 | 0 2 5 6 | 0 2 5 8 | 0 2 5 8 | "
      "0 2 5 8 | 0 2 5 8");
  table const rebuilt_sets = lists(" | | | | | 4 | 1 4 | 1 3 | 1 3 | 3 6 | 3 6 | 6 10");
  table const attended_sets = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 4 | 0 1 2 3 4 5 | 0 1 2 3 4 5 6 | 0 1 2 3 5 6 7 | "
      "0 1 2 3 5 6 8 | 0 2 3 5 6 8 9 | 0 2 3 5 6 8 10 | 0 2 5 6 8 10 11");
  table const released = lists(" | | | | 4 | 1 | 3 | 7 | 6 | 9 | 10 | 11");
  scored_lane lane(adaptive_release::paper(4));
  scored_lane larger(adaptive_release::paper(6));
  for (std::size_t n = 0; n < kept_sets.size(); ++n) {
    CAPTURE(n);
    CHECK(lane.rebuilt(worked_scores, 2) == rebuilt_sets[n]);
    CHECK(lane.attended(worked_scores, 2) == attended_sets[n]);
    CHECK(larger.attended(worked_scores, 0) == attended_sets[n]);
    CHECK(lane.step(worked_scores) == released[n]);
    larger.step(worked_scores);
    CHECK(lane.kept() == kept_sets[n]);
  }
}

TEST_CASE("the same run with the newest token protected") {
  table const kept_before = lists(
      " | 0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 2 3 4 | 0 2 3 5 | 0 2 5 6 | 0 2 5 7 | 0 2 5 8 | 0 2 8 9 | "
      "0 2 8 10");
  table const rebuilt_sets = lists(" | | | | | 1 | 1 4 | 1 3 | 3 6 | 3 6 | 5 6 | 5 6");
  scored_lane lane(adaptive_release{.keep = 4, .recent = 1, .sinks = 0});
  for (std::size_t n = 0; n < kept_before.size(); ++n) {
    CAPTURE(n);
    CHECK(lane.kept() == kept_before[n]);
    CHECK(lane.rebuilt(worked_scores, 2) == rebuilt_sets[n]);
    lane.step(worked_scores);
  }
}

TEST_CASE("scores that change let a rebuilt set differ from a larger cache") {
  std::vector<std::vector<float>> const scores{
      {.5F}, {.5F, .5F}, {.9F, .2F, .6F}, {.7F, .1F, .5F, .4F}, {.3F, .9F, .5F, .6F, .4F}};
  scored_lane lane(adaptive_release::paper(2));
  scored_lane larger(adaptive_release::paper(3));
  for (std::size_t n = 0; n < 2; ++n) {
    lane.step_rescored(scores[n]);
    larger.step_rescored(scores[n]);
  }
  CHECK(lane.step_rescored(scores[2]) == position_list{1});
  CHECK(larger.step_rescored(scores[2]) == position_list{});
  CHECK(lane.rebuilt(scores[3], 1) == position_list{1});
  CHECK(lane.attended(scores[3], 1) == position_list{0, 1, 2, 3});
  CHECK(lane.step_rescored(scores[3]) == position_list{3});
  CHECK(larger.step_rescored(scores[3]) == position_list{1});
  CHECK(lane.rebuilt(scores[4], 1) == position_list{1});
  CHECK(lane.attended(scores[4], 1) == position_list{0, 1, 2, 4});
  CHECK(larger.attended(scores[4], 0) == position_list{0, 2, 3, 4});
}

TEST_CASE("static scores: protected tokens and the best of the others stay, at every step") {
  std::mt19937 random(31);
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    scored_lane lane(c.policy);
    for (position_t n = 0; n < 26; ++n) {
      auto const released = lane.step(c.scores);
      CHECK(released.size() == (n < c.policy.keep ? 0U : 1U));
      REQUIRE(lane.kept() == c.kept_after(n));
    }
  }
}

TEST_CASE("static scores: the rebuilt tokens are the ranks after the kept ones") {
  std::mt19937 random(32);
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    scored_lane lane(c.policy);
    for (position_t n = 0; n < 26; ++n) {
      lane.step(c.scores);
      auto const ranking = c.ranking(n);
      position_list band;
      auto const first = static_cast<std::size_t>(c.policy.keep - c.policy.recent);
      auto const end = std::min(ranking.size(), first + static_cast<std::size_t>(c.rebuilt));
      for (std::size_t rank = first; rank < end; ++rank) band.push_back(ranking[rank]);
      REQUIRE(lane.rebuilt(c.scores, c.rebuilt) == sorted(band));
    }
  }
}

TEST_CASE(
    "static scores: m with R rebuilt attends what m + R attends, and what it drops stays away") {
  std::mt19937 random(33);
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    scored_lane lane(c.policy);
    scored_lane larger(c.larger());
    std::set<position_t> gone_from_cache;
    std::set<position_t> gone_from_sight;
    for (position_t n = 0; n < 26; ++n) {
      auto const seen = lane.attended(c.scores, c.rebuilt);
      REQUIRE(seen == larger.attended(c.scores, 0));
      for (position_t const p : seen) REQUIRE(!gone_from_sight.contains(p));
      for (position_t p = 0; p < n; ++p) {
        if (!std::binary_search(seen.begin(), seen.end(), p)) gone_from_sight.insert(p);
      }
      for (position_t const p : lane.step(c.scores)) gone_from_cache.insert(p);
      for (position_t const p : lane.kept()) REQUIRE(!gone_from_cache.contains(p));
      larger.step(c.scores);
    }
  }
}

TEST_CASE("static scores: streamed, in chunks or at once, the same set stays") {
  std::mt19937 random(34);
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    auto const total = static_cast<index_t>(1 + random() % 26);
    scored_lane at_once(c.policy);
    at_once.step(c.scores, total);
    scored_lane chunked(c.policy);
    while (chunked.next() < total) {
      auto const count = static_cast<index_t>(1 + random() % 7);
      chunked.step(c.scores, std::min(count, total - chunked.next()));
    }
    REQUIRE(at_once.kept() == c.kept_after(total - 1));
    REQUIRE(chunked.kept() == at_once.kept());
  }
}

TEST_CASE("static scores: the best of two parts' best are the best of all") {
  std::mt19937 random(35);
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    auto const best = [&](std::vector<std::uint8_t> const& left_out) {
      position_list chosen(8);
      chosen.resize(static_cast<std::size_t>(choose_rebuilt(c.scores, left_out, 8, chosen)));
      return chosen;
    };
    std::vector<std::uint8_t> in_first(26);
    std::vector<std::uint8_t> in_second(26);
    for (std::size_t p = 0; p < 26; ++p) {
      in_first[p] = static_cast<std::uint8_t>(random() % 2);
      in_second[p] = static_cast<std::uint8_t>(1 - in_first[p]);
    }
    std::vector<std::uint8_t> no_best(26, 1);
    for (auto const& part : {best(in_first), best(in_second)}) {
      for (position_t const p : part) no_best[static_cast<std::size_t>(p)] = 0;
    }
    CHECK(best(no_best) == best(std::vector<std::uint8_t>(26, 0)));
  }
}

TEST_CASE("static scores: the context of a rebuilt token can only shrink") {
  std::mt19937 random(36);
  int compared = 0;
  for (int i = 0; i < cases; ++i) {
    random_case const c(random);
    scored_lane lane(c.policy);
    scored_lane larger(c.larger());
    std::vector<position_list> first_context;  // of each token in the larger cache, at its own step
    for (position_t n = 0; n < 26; ++n) {
      first_context.push_back(larger.attended(c.scores, 0));
      auto const now = lane.attended(c.scores, c.rebuilt);
      for (position_t const j : lane.rebuilt(c.scores, c.rebuilt)) {
        position_list context;
        for (position_t const p : now) {
          if (p <= j) context.push_back(p);
        }
        auto const& before = first_context[static_cast<std::size_t>(j)];
        REQUIRE(std::includes(before.begin(), before.end(), context.begin(), context.end()));
        ++compared;
      }
      lane.step(c.scores);
      larger.step(c.scores);
    }
  }
  CHECK(compared > cases);
}

TEST_CASE("scores beyond all numbers: NaN goes first, infinity stays") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> const scores{
      1.0F, infinity, std::numeric_limits<float>::quiet_NaN(), 2.0F, 0.5F, -7.0F};
  scored_lane lane(adaptive_release::paper(3));
  lane.step(scores, 3);
  CHECK(lane.step(scores) == position_list{2});
  CHECK(lane.step(scores) == position_list{4});
  CHECK(lane.step(scores) == position_list{5});
  CHECK(lane.kept() == position_list{0, 1, 3});
}

TEST_CASE("a budget is divided by the defaults, however small it is") {
  for (index_t budget = 0; budget < 40; ++budget) {
    auto const policy = adaptive_release::of_budget(budget);
    policy.validate();
    CHECK(policy.budget() == budget);
    CHECK(policy.recent == budget / 4);
    CHECK(policy.sinks == std::min(4, budget - budget / 4));
  }
}

}  // namespace adore::testing
