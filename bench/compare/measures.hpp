// SPDX-License-Identifier: Apache-2.0
// How well a policy's predictions and kept sets agree with full attention's, summed token by token.
#pragma once

#include <span>
#include <vector>

namespace comparison {

/// Probabilities of one token's successors under full attention, the measure of the others.
struct reference_prediction {
  std::vector<float> logits, probabilities;  // [vocabulary]
  double log_sum = 0.0;                      // log of the sum of exp(logit)
  int best = 0;
  explicit reference_prediction(std::span<float const> full_logits);
};

struct measures {
  double negative_log_likelihood = 0.0, second_half = 0.0, kl = 0.0;
  long predictions = 0, second_half_predictions = 0, agreements = 0;
  double kept_weight = 0.0;
  long kept_weight_samples = 0;

  /// Adds one prediction: nats of the token that came, KL(full || this), agreement of the best.
  void add(std::span<float const> logits,
           reference_prediction const& full,
           int came,
           bool in_second_half);
  void add(measures const& other);

  double perplexity() const;
  double perplexity_second_half() const;
  double mean_kl() const;
  double top1() const;
  double mean_kept_weight() const;
};

}  // namespace comparison
