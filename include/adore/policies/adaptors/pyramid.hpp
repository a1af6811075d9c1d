// SPDX-License-Identifier: Apache-2.0
// PyramidKV: lower layers get more of the budget, upper layers less.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/policies/adaptors/forwards.hpp"

namespace adore {

/// `exact` keeps the sum at layers x mean (largest remainder); `repo` rounds every layer by the
/// same whole step as the authors' code, whose sum drifts.
enum class pyramid_rounding : std::uint8_t { exact, repo };

/// Tokens of one layer of a pyramid that falls linearly from 2 x mean - mean / beta to mean / beta.
///
/// Source: Cai et al., arXiv:2406.02069, section 3.3; policies.md 17.7.
/// @param mean  tokens per layer on average, >= beta
constexpr index_t pyramid_budget(index_t mean,
                                 index_t layers,
                                 index_t layer,
                                 index_t beta = 20,
                                 pyramid_rounding rounding = pyramid_rounding::exact) noexcept {
  if (layers == 1) return mean;
  if (rounding == pyramid_rounding::repo) {
    index_t const least = mean / beta;
    index_t const most = 2 * mean - least;
    return most - layer * ((most - least) / (layers - 1));
  }
  // mean x ((2 beta - 1)(layers - 1) - 2 l (beta - 1)) / (beta (layers - 1)), in whole numbers
  std::int64_t const denominator = std::int64_t{beta} * (layers - 1);
  auto const numerator = [&](index_t l) {
    return std::int64_t{mean} *
           ((2 * std::int64_t{beta} - 1) * (layers - 1) - 2 * std::int64_t{l} * (beta - 1));
  };
  std::int64_t left = std::int64_t{mean} * layers;
  for (index_t l = 0; l < layers; ++l) left -= numerator(l) / denominator;
  // what is left goes to the largest remainders, the lower layer first among equals
  std::int64_t const own = numerator(layer) % denominator;
  std::int64_t ahead = 0;
  for (index_t l = 0; l < layers; ++l) {
    std::int64_t const other = numerator(l) % denominator;
    if (other > own || (other == own && l < layer)) ++ahead;
  }
  return static_cast<index_t>(numerator(layer) / denominator) + (ahead < left ? 1 : 0);
}

/// The authors' code at a prompt: `repo` rounding, but nothing is released from a prompt within
/// mean + kept tokens, budgets are even below 2 x mean, and no layer is promised more than there
/// is.
///
/// @param kept  tokens that every layer keeps besides (the observation window)
constexpr index_t pyramid_budget_of_prompt(index_t mean,
                                           index_t kept,
                                           index_t layers,
                                           index_t layer,
                                           index_t tokens,
                                           index_t beta = 20) noexcept {
  index_t const others = tokens > kept ? tokens - kept : 0;
  if (others < mean) return others;
  if (tokens < 2 * mean || layers == 1) return mean;
  index_t least = mean / beta;
  index_t most = 2 * mean - least;
  if (most >= others) {
    most = others;
    least = 2 * mean - most;
  }
  return most - layer * ((most - least) / (layers - 1));
}

/// Gives each layer its own budget, around the policy's, or around what a policy keeps of a prompt
/// if it releases nothing later; protected newest tokens are kept everywhere and do not take part.
/// The store needs slots for the lowest layer's budget, nearly twice the mean.
///
///     pyramid<snapkv>{.of = {.size = 128, .window = 8}}
template <eviction_policy P>
struct pyramid : forwards<pyramid<P>, P> {
  P of{};
  index_t beta = 20;
  pyramid_rounding rounding = pyramid_rounding::exact;
  static constexpr scope default_scope =
      P::default_scope == scope::model ? scope::layer : P::default_scope;

  constexpr index_t lane_budget(kv_shape shape, index_t layer, index_t) const noexcept {
    if (of.budget() == unbounded) return unbounded;
    return kept() + pyramid_budget(mean(), shape.layers, layer, beta, rounding);
  }
  constexpr index_t lane_prompt_budget(kv_shape shape,
                                       index_t layer,
                                       index_t,
                                       index_t tokens) const noexcept {
    bool const once = of.budget() == unbounded;
    if (once && rounding == pyramid_rounding::repo) {
      return kept() + pyramid_budget_of_prompt(mean(), kept(), shape.layers, layer, tokens, beta);
    }
    return kept() + pyramid_budget(mean(), shape.layers, layer, beta, rounding);
  }
  constexpr void validate() const {
    of.validate();
    require_field(beta >= 1, "pyramid.beta", beta, "must be at least 1");
    require_field(size() != unbounded && mean() >= beta,
                  "pyramid.beta",
                  beta,
                  "must not exceed the budget beside the protected newest tokens, so that the top "
                  "layer keeps a token");
  }

 private:
  constexpr index_t size() const noexcept {
    if constexpr (budgets_prompt<P>) {
      return of.prompt_budget();
    } else {
      return of.budget();
    }
  }
  constexpr index_t kept() const noexcept {
    return newest_protected_by(of,
                               lane_view{.newest = 0,
                                         .occupied = 0,
                                         .budget = size(),
                                         .layer = 0,
                                         .kv_head = 0,
                                         .seed = 0,
                                         .ends_prompt = true});
  }
  constexpr index_t mean() const noexcept { return size() - kept(); }
};

}  // namespace adore
