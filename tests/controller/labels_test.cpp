// SPDX-License-Identifier: Apache-2.0
// Label sets against a worked table and a literal model, in every reading of the paper.
#include "adore/controller/labels.hpp"

#include "support/literal_sets.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

namespace {

using set_t = std::vector<int>;

set_t tokens_of(label_set const& set) {
  set_t tokens;
  for (std::size_t j = 0; j < set.labels.size(); ++j) {
    if (set.labels[j] != 0) tokens.push_back(static_cast<int>(j));
  }
  return tokens;
}

std::vector<float> in_sixteenths(std::vector<int> const& weights) {
  std::vector<float> result;
  for (int const w : weights) result.push_back(static_cast<float>(w) / 16.0F);
  return result;
}

/// Probabilities of one query, [layer][head x token], in sixteenths: sums are exact, ties common.
using query_weights = std::vector<std::vector<float>>;

query_weights draw_query(std::mt19937& random, std::size_t layers, std::size_t weights) {
  query_weights query(layers, std::vector<float>(weights));
  for (auto& layer : query) {
    for (float& w : layer) w = static_cast<float>(random() % 17) / 16.0F;
  }
  return query;
}

/// The same weights with the heads reduced to their mean, or maximum.
literal::layer_weights reduced(query_weights const& query, std::size_t tokens, bool to_max) {
  literal::layer_weights result;
  for (auto const& layer : query) {
    auto const heads = layer.size() / tokens;
    std::vector<float> one(tokens, 0.0F);
    for (std::size_t i = 0; i < layer.size(); ++i) {
      float& sum = one[i % tokens];
      sum = to_max ? std::max(sum, layer[i]) : sum + layer[i] / static_cast<float>(heads);
    }
    result.push_back(one);
  }
  return result;
}

set_t sorted(set_t set) {
  std::sort(set.begin(), set.end());
  return set;
}

}  // namespace

TEST_CASE("the worked table: votes first, then mass") {
  std::vector<std::vector<int>> const rows{
      {5, 1, 4, 0, 3, 3}, {6, 2, 1, 0, 4, 3}, {1, 5, 2, 0, 2, 6}};
  for (label_fill const fill : {label_fill::mass, label_fill::none}) {
    uniform_labels labels({.count = 4, .fill = fill, .queries = label_queries::last});
    for (auto const& row : rows) labels.add_layer(5, in_sixteenths(row));
    CHECK(tokens_of(labels.sets().at(0)) == set_t{0, 1, 4, 5});
    CHECK(labels.sets().at(0).query == 5);
  }
}

TEST_CASE("where the layers agree, mass fills the set, or nothing does") {
  for (label_fill const fill : {label_fill::mass, label_fill::none}) {
    uniform_labels labels({.count = 4, .fill = fill, .queries = label_queries::last});
    for (int layer = 0; layer < 3; ++layer) {
      labels.add_layer(5, in_sixteenths({6, 1, 5, 3, 0, 1}));
    }
    CHECK(tokens_of(labels.sets().at(0)) ==
          (fill == label_fill::mass ? set_t{0, 2, 3, 5} : set_t{0, 2}));  // 1 and 5 tie: the newer
  }
}

TEST_CASE("a text of at most K tokens is all labels; an odd K votes for half of it rounded down") {
  uniform_labels labels({.count = 5, .queries = label_queries::every});
  std::mt19937 random(1);
  for (int n = 0; n < 5; ++n) {
    labels.add_layer(n, draw_query(random, 1, static_cast<std::size_t>(n) + 1)[0]);
  }
  auto const sets = labels.sets();
  CHECK(sets.size() == 5);
  for (label_set const& set : sets) {
    CHECK(set.labels == std::vector<std::uint8_t>(static_cast<std::size_t>(set.query) + 1, 1));
  }
  uniform_labels odd({.count = 5, .fill = label_fill::none});
  odd.add_layer(5, in_sixteenths({1, 2, 3, 4, 5, 1}));
  CHECK(tokens_of(odd.sets().at(0)) == set_t{3, 4});
}

TEST_CASE("random attention: the sets of the literal model") {
  std::mt19937 random(2);
  for (int trial = 0; trial < 600; ++trial) {
    std::size_t const heads = 1U << random() % 3;  // so that a mean of sixteenths is exact
    auto const layers = 1 + random() % 4;
    auto const k = static_cast<index_t>(2 + random() % 8);
    bool const to_max = random() % 2 == 0;
    bool const fills = random() % 2 == 0;
    bool const divides = random() % 2 == 0;
    label_options options{
        .count = k,
        .heads = to_max ? label_heads::max : label_heads::mean,
        .fill = fills ? label_fill::mass : label_fill::none,
        .normalise = divides ? label_normalise::visible_count : label_normalise::none};
    options.queries = label_queries::aggregate;
    uniform_labels together(options);
    options.queries = label_queries::every;
    uniform_labels each(options);
    options.queries = label_queries::last;
    uniform_labels last(options);

    std::vector<literal::layer_weights> literal_queries;
    std::vector<position_t> asked;
    for (position_t n = static_cast<position_t>(random() % 4); n < 14;
         n += 1 + static_cast<position_t>(random() % 4)) {
      auto const tokens = static_cast<std::size_t>(n) + 1;
      auto const query = draw_query(random, layers, heads * tokens);
      literal_queries.push_back(reduced(query, tokens, to_max));
      asked.push_back(n);
      for (auto const& layer : query) {
        for (uniform_labels* one : {&together, &each, &last}) one->add_layer(n, layer);
      }
    }
    auto const fill = fills ? literal::label_fill::mass : literal::label_fill::none;
    auto const normalise =
        divides ? literal::label_normalise::visible_count : literal::label_normalise::none;
    auto const expected = [&](std::vector<literal::layer_weights> const& queries) {
      return sorted(literal::uniform_top_k(queries, k, fill, normalise));
    };
    REQUIRE(together.sets().size() == 1);
    CHECK(tokens_of(together.sets()[0]) == expected(literal_queries));
    CHECK(together.sets()[0].query == asked.back());
    REQUIRE(last.sets().size() == 1);
    CHECK(tokens_of(last.sets()[0]) == expected({literal_queries.back()}));
    auto const sets = each.sets();
    REQUIRE(sets.size() == asked.size());
    for (std::size_t i = 0; i < sets.size(); ++i) {
      CHECK(sets[i].query == asked[i]);
      CHECK(tokens_of(sets[i]) == expected({literal_queries[i]}));
    }
  }
}

TEST_CASE("votes and weights that were counted elsewhere make the same set") {
  std::mt19937 random(6);
  for (int trial = 0; trial < 100; ++trial) {
    constexpr position_t tokens = 12;
    auto const k = static_cast<index_t>(2 + random() % 8);
    uniform_labels by_layer({.count = k});
    std::vector<std::int32_t> votes(tokens, 0);
    std::vector<double> mass(tokens, 0.0);
    for (position_t n = 0; n < tokens; ++n) {
      for (auto const& layer : draw_query(random, 3, static_cast<std::size_t>(n) + 1)) {
        by_layer.add_layer(n, layer);
        for (std::size_t j = 0; j < layer.size(); ++j) {
          mass[j] += double{layer[j]};
          // as many as are better have no place for it
          auto const better = std::count_if(layer.begin(), layer.end(), [&](float const& other) {
            auto const i = static_cast<std::size_t>(&other - layer.data());
            return other > layer[j] || (other == layer[j] && i > j);
          });
          if (better < k / 2) ++votes[j];
        }
      }
    }
    uniform_labels counted({.count = k});
    counted.add_counted(votes, mass);
    REQUIRE(counted.sets().size() == 1);
    CHECK(counted.sets()[0].query == tokens - 1);
    CHECK(counted.sets()[0].labels == by_layer.sets()[0].labels);
    CHECK_THROWS_AS(counted.add_counted(votes, mass), std::logic_error);
    CHECK_THROWS_AS(by_layer.add_counted(votes, mass), std::logic_error);
  }
  uniform_labels labels({});
  CHECK_THROWS_AS(labels.add_counted({}, {}), std::logic_error);
  std::vector<std::int32_t> const votes(3);
  std::vector<double> const mass(2);
  CHECK_THROWS_AS(labels.add_counted(votes, mass), std::logic_error);
  uniform_labels each({.queries = label_queries::every});
  CHECK_THROWS_AS(each.add_counted(votes, std::vector<double>(3)), std::logic_error);
}

TEST_CASE("with votes per head a token that one head loves beats one that all like a little") {
  // two heads; the mean prefers token 1, each head its own favourite
  auto const weights = in_sixteenths({9, 7, 0, 0, 0, 7, 9, 0});
  auto const chosen = [&](label_heads heads) {
    uniform_labels labels({.count = 2, .heads = heads, .fill = label_fill::none});
    labels.add_layer(3, weights);
    return tokens_of(labels.sets().at(0));
  };
  CHECK(chosen(label_heads::mean) == set_t{1});
  CHECK(chosen(label_heads::max) == set_t{2});  // 9 = 9: the newer
  CHECK(chosen(label_heads::per_head_votes) == set_t{0, 2});
}

TEST_CASE("a query that is excluded from its own set neither votes for itself nor is labelled") {
  auto const weights = in_sixteenths({1, 2, 3, 10});
  for (bool const exclude : {false, true}) {
    uniform_labels labels({.count = 2, .queries = label_queries::every, .exclude_self = exclude});
    labels.add_layer(3, weights);
    CHECK(tokens_of(labels.sets().at(0)) == (exclude ? set_t{1, 2} : set_t{2, 3}));
  }
  // together: later queries may label the token, the query itself does not
  uniform_labels labels({.count = 2, .fill = label_fill::none, .exclude_self = true});
  labels.add_layer(1, in_sixteenths({2, 14}));
  labels.add_layer(2, in_sixteenths({1, 3, 12}));
  CHECK(tokens_of(labels.sets().at(0)) == set_t{0, 1});
}

TEST_CASE("only the newest query counts for `last`, whatever the order of the layers") {
  uniform_labels labels({.count = 2, .queries = label_queries::last});
  labels.add_layer(3, in_sixteenths({0, 0, 8, 8}));
  labels.add_layer(2, in_sixteenths({8, 8, 0}));
  labels.add_layer(3, in_sixteenths({0, 0, 8, 8}));
  REQUIRE(labels.sets().size() == 1);
  CHECK(labels.sets()[0].query == 3);
  CHECK(tokens_of(labels.sets()[0]) == set_t{2, 3});
}

TEST_CASE(
    "no query, no set; weights that fit no number of heads and a K without a vote are refused") {
  uniform_labels labels({});
  CHECK(labels.sets().empty());
  CHECK_THROWS_AS(labels.add_layer(3, std::vector<float>(6)), std::logic_error);
  CHECK_THROWS_AS(labels.add_layer(3, {}), std::logic_error);
  CHECK_THROWS_AS(labels.add_layer(-1, std::vector<float>(6)), std::logic_error);
  CHECK_THROWS_AS(uniform_labels({.count = 1}), std::invalid_argument);
}

}  // namespace adore::testing
