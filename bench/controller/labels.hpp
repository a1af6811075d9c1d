// SPDX-License-Identifier: Apache-2.0
// What a controller is to learn: which tokens full attention needs. From the attention of one
// sequence, query by query, to label sets; where the attention comes from is not its business.
#pragma once

#include <adore/controller/labels.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace controller_labels {

enum class label_kind {
  uniform,  ///< one set for all layers and queries, by votes of the layers (the paper's)
  query,    ///< per sampled query n: what n itself attends to
  future    ///< per sampled query n: what the next `horizon` queries attend to
};

enum class label_outputs { model, layers };  ///< one set, or one per layer

struct label_options {
  label_kind kind = label_kind::query;
  label_outputs outputs = label_outputs::model;
  int k = 128;               ///< tokens in a set
  int horizon = 0;           ///< queries that `future` sums up
  float mass_factor = 0.0F;  ///< decay per query of the mass, 0: no mass is gathered
  bool attention = false;    ///< what the sets are made from is wanted too; not for uniform
};

/// What all queries of a sequence add up to.
struct label_sums {
  std::vector<float> attention;     ///< [output, query, token] that the sets are made from
  std::vector<float> mass;          ///< [output, query, token], empty where none is gathered
  std::vector<std::int32_t> votes;  ///< [token], uniform; otherwise empty
  std::vector<double> all;  ///< [token], uniform: attention of all layers and queries; else empty
};

/// The label sets of one sequence.
///
/// * uniform: that of `adore::uniform_labels` for all queries together. It counts as the set of the
///   one query given, the last token.
/// * query: the K tokens among 0..n that query n attends most, summed over all heads of its
///   output's layers; among equals the newest.
/// * future: the same for the sum of queries n+1 .. n+horizon.
///
/// Mass of token i at query n: the sum over queries j = i..n of factor^(n - j) times the attention
/// of j, what a policy with decayed attention knows at the end of step n.
class crop_labels {
 public:
  /// @param queries  positions of the sampled queries, ascending
  /// @throws std::invalid_argument naming the option and its value
  crop_labels(label_options const& options, int layers, int tokens, std::vector<int> queries);

  /// Takes the attention of one query in one layer. All queries of a layer have to come, in order;
  /// the layers may alternate in any way.
  ///
  /// @param weights  [token 0..query] probabilities, summed over the layer's query heads
  /// @throws std::logic_error if it is not that layer's turn
  void see(int layer, int query, std::span<float const> weights);
  /// Takes what someone else has added up of all queries and layers.
  /// @throws std::logic_error if it has another size, or queries have been seen
  void take(label_sums sums);

  /// [output, query, byte]: bit i % 8 of byte i / 8 says that token i is in the set.
  /// @throws std::logic_error before all queries came
  std::vector<std::uint8_t> sets() const;

  /// [output, query, token] of kinds query and future: probabilities summed over the heads of the
  /// output's layers, for future the mean of its queries; 0 for tokens after the query.
  std::vector<float> attention() const;

  /// [output, query, token], empty where no mass is gathered.
  std::vector<float> const& mass() const { return sums_.mass; }

  int outputs() const { return outputs_; }
  int tokens() const { return tokens_; }
  std::vector<int> const& queries() const { return queries_; }

 private:
  std::span<float> of_query(std::vector<float>& data, int layer, std::size_t query) const;

  label_options options_;
  int layers_, tokens_, outputs_;
  std::vector<int> queries_;
  std::vector<int> next_query_;  // [layer]
  label_sums sums_;              // but for what `uniform_` has
  std::optional<adore::uniform_labels> uniform_;
  std::vector<float> decayed_;  // [layer, token]
};

/// Positions that queries are sampled from, [first, last]: each sees more than K tokens, and has
/// its whole horizon after it.
struct query_range {
  int first, last;
};
/// @throws std::invalid_argument if there are no such positions among so many tokens
query_range queries_of(label_options const& options, int tokens);

}  // namespace controller_labels
