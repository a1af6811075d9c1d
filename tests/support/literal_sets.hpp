// SPDX-License-Identifier: Apache-2.0
// Sets that are chosen for one query and release nothing: the Sparse Transformer's patterns,
// dynamic top-K, and the uniform top-K set that labels a controller's training data.
#pragma once

#include "literal_order.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <vector>

namespace literal {

enum class local_inclusive { code, paper };  // l or l + 1 positions, the query's own included

/// A1: the nearest positions, ascending.
inline std::vector<int> sparse_local(int i, int l, local_inclusive reading) {
  std::vector<int> seen;
  for (int j = 0; j <= i; ++j) {
    if (i - j < l || (i - j == l && reading == local_inclusive::paper)) seen.push_back(j);
  }
  return seen;
}

/// A2 of the strided pattern.
inline std::vector<int> sparse_strided(int i, int l) {
  std::vector<int> seen;
  for (int j = 0; j <= i; ++j) {
    if ((i - j) % l == 0) seen.push_back(j);
  }
  return seen;
}

/// A1 of the fixed pattern: the query's own block.
inline std::vector<int> sparse_fixed_block(int i, int l) {
  std::vector<int> seen;
  for (int j = 0; j <= i; ++j) {
    if (j / l == i / l) seen.push_back(j);
  }
  return seen;
}

/// A2 of the fixed pattern: the last c columns of every block.
inline std::vector<int> sparse_fixed_summary(int i, int l, int c) {
  std::vector<int> seen;
  for (int j = 0; j <= i; ++j) {
    if (j % l >= l - c) seen.push_back(j);
  }
  return seen;
}

/// Top_K of the scores of positions 0..n (the last is the query's own), ascending.
/// `always_self` (`include_self = always`): the query's own position takes one of the K places.
inline std::vector<int> top_k(std::vector<float> const& scores, int k, bool always_self = false) {
  std::map<int, float> all;
  for (std::size_t j = 0; j < scores.size(); ++j) all[static_cast<int>(j)] = scores[j];
  std::vector<int> chosen;
  if (always_self && !scores.empty()) {
    auto const self = static_cast<int>(scores.size()) - 1;
    all.erase(self);
    chosen = top(std::max(0, k - 1), all);
    chosen.push_back(self);
  } else {
    chosen = top(k, all);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

inline std::vector<float> softmax(std::vector<float> const& logits) {
  float const highest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> p;
  float sum = 0.0F;
  for (float const x : logits) {
    p.push_back(std::exp(x - highest));
    sum += p.back();
  }
  for (float& x : p) x /= sum;
  return p;
}

/// Position by position, heads in ascending order.
inline std::vector<float> sum_over_heads(std::vector<std::vector<float>> const& probabilities) {
  std::vector<float> sum(probabilities.at(0).size(), 0.0F);
  for (auto const& head : probabilities) {
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += head.at(j);
  }
  return sum;
}

/// Scope head: by the logits themselves.
inline std::vector<int> top_k_of_head(std::vector<float> const& logits,
                                      int k,
                                      bool always_self = false) {
  return top_k(logits, k, always_self);
}

/// Scope kv_head: by the sum of the group's probabilities.
inline std::vector<int> top_k_of_kv_head(std::vector<std::vector<float>> const& logits_of_group,
                                         int k,
                                         bool always_self = false) {
  std::vector<std::vector<float>> probabilities;
  for (auto const& logits : logits_of_group) probabilities.push_back(softmax(logits));
  return top_k(sum_over_heads(probabilities), k, always_self);
}

/// Scope layer: by the mean of all heads' probabilities.
inline std::vector<int> top_k_of_layer(std::vector<std::vector<float>> const& logits_of_heads,
                                       int k,
                                       bool always_self = false) {
  std::vector<std::vector<float>> probabilities;
  for (auto const& logits : logits_of_heads) probabilities.push_back(softmax(logits));
  auto mean = sum_over_heads(probabilities);
  for (float& x : mean) x /= static_cast<float>(logits_of_heads.size());
  return top_k(mean, k, always_self);
}

enum class label_fill { mass, none };
enum class label_normalise { none, visible_count };

/// One query: per layer the weights over 0..n, mean over heads.
using layer_weights = std::vector<std::vector<float>>;

/// U, best first, by (votes, mass, position). With one query it is that query's own set
/// (`label.queries = last | every`), with all of them the aggregate; the last query sees all
/// tokens. `visible_count` divides the votes (not the mass) by the number of
/// the given queries that see the token. `fill = none` drops tokens without a vote, also where n +
/// 1 <= K.
inline std::vector<int> uniform_top_k(std::vector<layer_weights> const& queries,
                                      int k,
                                      label_fill fill = label_fill::mass,
                                      label_normalise normalise = label_normalise::none) {
  std::size_t const tokens = queries.back().at(0).size();
  std::vector<float> votes(tokens, 0.0F);
  std::vector<float> mass(tokens, 0.0F);
  std::vector<float> visible(tokens, 0.0F);
  for (layer_weights const& query : queries) {
    for (auto const& layer : query) {
      for (int const j : top_k(layer, k / 2)) votes[static_cast<std::size_t>(j)] += 1.0F;
      for (std::size_t j = 0; j < layer.size(); ++j) mass[j] += layer[j];
    }
    for (std::size_t j = 0; j < query.at(0).size(); ++j) visible[j] += 1.0F;
  }
  if (normalise == label_normalise::visible_count) {
    for (std::size_t j = 0; j < tokens; ++j) votes[j] /= visible[j];
  }
  std::vector<std::size_t> order;
  for (std::size_t j = 0; j < tokens; ++j) {
    if (fill == label_fill::mass || votes[j] > 0.0F) order.push_back(j);
  }
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (votes[a] != votes[b]) return votes[a] > votes[b];
    if (mass[a] != mass[b]) return mass[a] > mass[b];
    return a > b;
  });
  if (order.size() > static_cast<std::size_t>(k)) order.resize(static_cast<std::size_t>(k));
  return {order.begin(), order.end()};
}

}  // namespace literal
