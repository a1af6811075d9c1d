// SPDX-License-Identifier: Apache-2.0
// What a controller is trained to say: the tokens that all layers agree to attend most.
#pragma once

#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace adore {

/// How the heads of a layer become one ranking.
enum class label_heads : std::uint8_t {
  mean,
  max,
  per_head_votes  ///< none: each head votes for its own strongest tokens
};
/// What fills the set where fewer than `count` tokens have a vote.
enum class label_fill : std::uint8_t { mass, none };
/// Which queries are asked: the last one, each for a set of its own, or all for one set.
enum class label_queries : std::uint8_t { last, every, aggregate };
/// Whether votes are divided by the number of queries that saw the token.
enum class label_normalise : std::uint8_t { none, visible_count };

struct label_options {
  index_t count = 96;  ///< K: tokens in a set; each layer votes for K / 2
  label_heads heads = label_heads::mean;
  label_fill fill = label_fill::mass;
  label_queries queries = label_queries::aggregate;
  label_normalise normalise = label_normalise::none;
  bool exclude_self = false;  ///< a query neither votes for its own token nor may label it
};

/// The labels of one query, or of all queries together.
struct label_set {
  position_t query;                  ///< the newest of the queries
  std::vector<std::uint8_t> labels;  ///< [token] 0 .. query: 1 = in the set
};

/// Collects the attention of some queries, layer by layer, and makes the uniform top-K sets.
///
/// A layer votes for the K / 2 tokens with its largest weight; the K tokens with the most votes,
/// then the largest weight over all layers, then the newest, are the set. Weights are those of a
/// dense cache.
///
/// Source: arXiv:2407.02328, section 2.2 and Appendix B; policies.md 10 lists what they leave open.
/// Cost:   linear in the weights; memory: three numbers per token, per query with `every`.
class uniform_labels {
 public:
  /// @throws std::invalid_argument if `count` is below 2: a layer would have no vote
  explicit uniform_labels(label_options options) : options_(options) {
    if (options.count < 2) {
      throw std::invalid_argument("adore: labels.count = " + std::to_string(options.count) +
                                  ": must be at least 2, so that a layer has a vote");
    }
  }

  /// Adds one layer's attention of one query. Each query brings all its layers, in any order.
  ///
  /// @param weights  [head, token] probabilities over the tokens 0 .. query
  /// @throws std::logic_error if they are not a whole number of heads
  void add_layer(position_t query, std::span<float const> weights) {
    auto const tokens = static_cast<std::size_t>(query) + 1;
    if (query < 0 || weights.empty() || weights.size() % tokens != 0) {
      throw std::logic_error("adore: labels: " + std::to_string(weights.size()) +
                             " weights of query " + std::to_string(query) +
                             ", expected some heads x " + std::to_string(tokens));
    }
    if (options_.queries == label_queries::last && !ballots_.empty()) {
      if (query < ballots_.begin()->first) return;
      if (query > ballots_.begin()->first) ballots_.clear();
    }
    bool const together = options_.queries == label_queries::aggregate;
    ballot& one = ballots_[together ? 0 : query];
    one.grow(tokens);
    bool const is_new =
        std::find(one.queries.begin(), one.queries.end(), query) == one.queries.end();
    if (is_new) one.queries.push_back(query);
    std::size_t const heads = weights.size() / tokens;
    std::vector<float> ranking(tokens, 0.0F);
    for (std::size_t head = 0; head < heads; ++head) {
      auto const of_head = weights.subspan(head * tokens, tokens);
      for (std::size_t j = 0; j < tokens; ++j) {
        ranking[j] = options_.heads == label_heads::max ? std::max(ranking[j], of_head[j])
                                                        : ranking[j] + of_head[j];
      }
      if (options_.heads == label_heads::per_head_votes) vote(one, of_head);
    }
    if (options_.heads != label_heads::max) {
      for (float& weight : ranking) weight /= static_cast<float>(heads);
    }
    if (options_.heads != label_heads::per_head_votes) vote(one, ranking);
    for (std::size_t j = 0; j < judged(tokens); ++j) one.mass[j] += double{ranking[j]};
  }

  /// Adds what was counted elsewhere of all queries together, as if each had brought its layers.
  ///
  /// @param votes  [token] of all queries 0 .. tokens - 1
  /// @param mass   [token] their weights, added up over the layers
  /// @throws std::logic_error if queries have come already or make sets of their own, or the sizes
  ///         do not fit one another
  void add_counted(std::span<std::int32_t const> votes, std::span<double const> mass) {
    if (options_.queries != label_queries::aggregate || !ballots_.empty() || votes.empty() ||
        votes.size() != mass.size()) {
      throw std::logic_error("adore: labels: " + std::to_string(votes.size()) + " votes and " +
                             std::to_string(mass.size()) +
                             " sums of weights: expected as many of the one as of the other, for "
                             "one set of all queries, and none before");
    }
    ballot& one = ballots_[0];
    one.mass.assign(mass.begin(), mass.end());
    for (std::int32_t const count : votes) {
      one.queries.push_back(static_cast<position_t>(one.votes.size()));
      one.votes.push_back(static_cast<float>(count));
    }
  }

  /// One set per query, ascending, with `every`; else one set. Empty before the first query.
  std::vector<label_set> sets() const {
    std::vector<label_set> result;
    for (auto const& entry : ballots_) result.push_back(chosen(entry.second));
    return result;
  }

 private:
  struct ballot {
    std::vector<position_t> queries;
    std::vector<float> votes;  // [token]
    std::vector<double> mass;  // [token] of many queries: a float would lose the late ones

    void grow(std::size_t tokens) {
      if (votes.size() >= tokens) return;
      votes.resize(tokens, 0.0F);
      mass.resize(tokens, 0.0);
    }
  };

  /// Tokens of which a query over `tokens` tokens has an opinion.
  std::size_t judged(std::size_t tokens) const noexcept {
    return options_.exclude_self ? tokens - 1 : tokens;
  }

  /// One more vote for each of the K / 2 largest weights.
  void vote(ballot& one, std::span<float const> weights) const {
    std::vector<std::uint64_t> keys;
    for (std::size_t j = 0; j < judged(weights.size()); ++j) {
      keys.push_back(order_key(weights[j], static_cast<position_t>(j)));
    }
    auto const count = std::min(keys.size(), static_cast<std::size_t>(options_.count / 2));
    auto const end = keys.begin() + static_cast<std::ptrdiff_t>(count);
    if (end != keys.end()) std::nth_element(keys.begin(), end, keys.end(), std::greater<>{});
    for (auto key = keys.begin(); key != end; ++key) {
      one.votes[static_cast<std::uint32_t>(*key)] += 1.0F;
    }
  }

  label_set chosen(ballot const& one) const {
    std::size_t const tokens = one.votes.size();
    label_set result{static_cast<position_t>(tokens) - 1, std::vector<std::uint8_t>(tokens, 0)};
    std::vector<index_t> judges(tokens + 1, 0);  // of the tokens before j + 1, then before j
    for (position_t const query : one.queries) {
      ++judges[judged(static_cast<std::size_t>(query) + 1)];
    }
    for (std::size_t j = tokens; j-- > 0;) judges[j] += judges[j + 1];
    std::vector<std::tuple<float, double, std::size_t>> ranking;  // votes, mass, token
    for (std::size_t j = 0; j < tokens; ++j) {
      index_t const saw_it = judges[j + 1];
      if (saw_it == 0 || (options_.fill == label_fill::none && one.votes[j] == 0.0F)) continue;
      float const divisor =
          options_.normalise == label_normalise::none ? 1.0F : static_cast<float>(saw_it);
      ranking.emplace_back(one.votes[j] / divisor, one.mass[j], j);
    }
    auto const count = std::min(ranking.size(), static_cast<std::size_t>(options_.count));
    auto const end = ranking.begin() + static_cast<std::ptrdiff_t>(count);
    if (end != ranking.end()) {
      std::nth_element(ranking.begin(), end, ranking.end(), std::greater<>{});
    }
    for (auto best = ranking.begin(); best != end; ++best) result.labels[std::get<2>(*best)] = 1;
    return result;
  }

  label_options options_;
  std::map<position_t, ballot> ballots_;  // by query; all under 0 if they vote together
};

}  // namespace adore
