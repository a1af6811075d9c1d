// SPDX-License-Identifier: Apache-2.0
#include "measures.hpp"

#include <algorithm>
#include <cmath>

namespace comparison {

namespace {

double log_sum_exp(std::span<float const> logits, float largest) {
  double sum = 0.0;
  for (float const logit : logits) sum += double{std::exp(logit - largest)};
  return double{largest} + std::log(sum);
}

double ratio(double sum, long count) {
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

}  // namespace

reference_prediction::reference_prediction(std::span<float const> full_logits)
    : logits(full_logits.begin(), full_logits.end()), probabilities(full_logits.size()) {
  auto const largest = std::max_element(logits.begin(), logits.end());
  best = static_cast<int>(largest - logits.begin());
  log_sum = log_sum_exp(logits, *largest);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    probabilities[i] = std::exp(logits[i] - static_cast<float>(log_sum));
  }
}

void measures::add(std::span<float const> logits,
                   reference_prediction const& full,
                   int came,
                   bool in_second_half) {
  auto const largest = std::max_element(logits.begin(), logits.end());
  double const log_sum = log_sum_exp(logits, *largest);
  double const nats = log_sum - double{logits[static_cast<std::size_t>(came)]};
  negative_log_likelihood += nats;
  ++predictions;
  if (in_second_half) {
    second_half += nats;
    ++second_half_predictions;
  }
  double difference = 0.0;  // sum of p_full x (logit_full - logit)
  for (std::size_t i = 0; i < logits.size(); ++i) {
    difference += double{full.probabilities[i]} * (double{full.logits[i]} - double{logits[i]});
  }
  kl += difference - full.log_sum + log_sum;
  agreements += largest - logits.begin() == full.best ? 1 : 0;
}

void measures::add(measures const& other) {
  negative_log_likelihood += other.negative_log_likelihood;
  second_half += other.second_half;
  kl += other.kl;
  predictions += other.predictions;
  second_half_predictions += other.second_half_predictions;
  agreements += other.agreements;
  kept_weight += other.kept_weight;
  kept_weight_samples += other.kept_weight_samples;
}

double measures::perplexity() const {
  return std::exp(ratio(negative_log_likelihood, predictions));
}
double measures::perplexity_second_half() const {
  return std::exp(ratio(second_half, second_half_predictions));
}
double measures::mean_kl() const {
  return ratio(kl, predictions);
}
double measures::top1() const {
  return ratio(static_cast<double>(agreements), predictions);
}
double measures::mean_kept_weight() const {
  // a text that is never longer than the budget is kept whole
  return kept_weight_samples > 0 ? ratio(kept_weight, kept_weight_samples) : 1.0;
}

}  // namespace comparison
