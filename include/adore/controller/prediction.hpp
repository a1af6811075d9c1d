// SPDX-License-Identifier: Apache-2.0
// How well scores predict labels: hits and misses, and the figures that are made of them.
#pragma once

#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// Counts of predictions. Added up over samples they give micro averages; a per-sample mean is the
/// mean of each sample's own figure. A figure without a denominator is 0.
struct prediction_counts {
  std::int64_t true_positives = 0, false_positives = 0, false_negatives = 0, true_negatives = 0;

  friend constexpr bool operator==(prediction_counts const&, prediction_counts const&) = default;
  constexpr prediction_counts& operator+=(prediction_counts const& other) noexcept {
    true_positives += other.true_positives;
    false_positives += other.false_positives;
    false_negatives += other.false_negatives;
    true_negatives += other.true_negatives;
    return *this;
  }
  constexpr std::int64_t total() const noexcept {
    return true_positives + false_positives + false_negatives + true_negatives;
  }
  constexpr double accuracy() const noexcept {
    return ratio(true_positives + true_negatives, total());
  }
  constexpr double f1() const noexcept {
    return ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives);
  }
  /// The part of the labelled tokens that was found.
  constexpr double hit_rate() const noexcept {
    return ratio(true_positives, true_positives + false_negatives);
  }
  /// The part of all tokens that is labelled. Without it an accuracy says nothing.
  constexpr double prevalence() const noexcept {
    return ratio(true_positives + false_negatives, total());
  }

 private:
  static constexpr double ratio(std::int64_t part, std::int64_t whole) noexcept {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

namespace detail {
inline void require_labels(std::size_t logits, std::size_t labels) {
  if (logits == labels) return;
  throw std::logic_error("adore: prediction: " + std::to_string(logits) + " logits for " +
                         std::to_string(labels) + " labels");
}
inline void count_one(prediction_counts& counts, bool predicted, bool labelled) noexcept {
  if (predicted) {
    ++(labelled ? counts.true_positives : counts.false_positives);
  } else {
    ++(labelled ? counts.false_negatives : counts.true_negatives);
  }
}
}  // namespace detail

/// A token is predicted where its probability is above 1/2, its logit above 0.
///
/// @param labels  [token] 0 or 1
/// @throws std::logic_error if there are not as many of both
inline prediction_counts predict_by_threshold(std::span<float const> logits,
                                              std::span<std::uint8_t const> labels) {
  detail::require_labels(logits.size(), labels.size());
  prediction_counts counts;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    detail::count_one(counts, logits[i] > 0.0F, labels[i] != 0);
  }
  return counts;
}

/// The `count` tokens of the largest logits are predicted; the newer of equals.
inline prediction_counts predict_by_rank(std::span<float const> logits,
                                         std::span<std::uint8_t const> labels,
                                         index_t count) {
  detail::require_labels(logits.size(), labels.size());
  std::vector<std::uint64_t> keys;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    keys.push_back(order_key(logits[i], static_cast<position_t>(i)));
  }
  auto const predicted = std::min(keys.size(), static_cast<std::size_t>(std::max(count, 0)));
  auto const end = keys.begin() + static_cast<std::ptrdiff_t>(predicted);
  if (end != keys.end()) std::nth_element(keys.begin(), end, keys.end(), std::greater<>{});
  prediction_counts counts;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    // the low half of a key is the position
    detail::count_one(counts, i < predicted, labels[static_cast<std::uint32_t>(keys[i])] != 0);
  }
  return counts;
}

}  // namespace adore
