// SPDX-License-Identifier: Apache-2.0
// What a controller may be: its recurrence, what it is told of a token's position, and whether its
// scores look at the current token. Each choice has the word that names it in a file.
#pragma once

#include "adore/host_device.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore {

/// How the state z follows from an embedding x and the state before it.
enum class gru_form : std::uint8_t {
  pytorch,  ///< reset after the product with z, z' = (1 - u) n + u z
  cho,      ///< reset before it, z' = (1 - u) z + u n (Cho et al. 2014; Dey and Salem 2017)
  none      ///< no recurrence: z = W x + b
};
constexpr char const* word_of(gru_form form) noexcept {
  switch (form) {
    case gru_form::pytorch:
      return "pytorch";
    case gru_form::cho:
      return "cho";
    case gru_form::none:
      return "none";
  }
  return nullptr;
}

/// The number that the position layer is given for token i when token n is the newest.
enum class position_feature : std::uint8_t {
  index_over_max,     ///< i / max_length
  raw,                ///< i; saturates the tanh after some tokens
  log1p,              ///< log(1 + i)
  index_over_length,  ///< i / max(n, 1), changes at every step
  distance            ///< (n - i) / max_length, changes at every step
};
constexpr char const* word_of(position_feature feature) noexcept {
  switch (feature) {
    case position_feature::index_over_max:
      return "index_over_max";
    case position_feature::raw:
      return "raw";
    case position_feature::log1p:
      return "log1p";
    case position_feature::index_over_length:
      return "index_over_length";
    case position_feature::distance:
      return "distance";
  }
  return nullptr;
}
ADORE_HOST_DEVICE constexpr bool changes_with_length(position_feature feature) noexcept {
  return feature == position_feature::index_over_length || feature == position_feature::distance;
}

/// What the score of token i depends on beside the tokens 0 .. i.
enum class score_mode : std::uint8_t {
  static_score,       ///< nothing: it is computed once (the paper's Eq. 2)
  distance,           ///< how far token i lies back
  index_over_length,  ///< how long the text is by now
  query_conditioned,  ///< the current state z_n, added before the tanh
  bilinear,           ///< the current state z_n, as z_n^T M z_i / sqrt(hidden)
  bidirectional       ///< all tokens after it
};
constexpr char const* word_of(score_mode mode) noexcept {
  switch (mode) {
    case score_mode::static_score:
      return "static";
    case score_mode::distance:
      return "distance";
    case score_mode::index_over_length:
      return "index_over_length";
    case score_mode::query_conditioned:
      return "query_conditioned";
    case score_mode::bilinear:
      return "bilinear";
    case score_mode::bidirectional:
      return "bidirectional";
  }
  return nullptr;
}

/// What is done to an embedding before the controller reads it.
enum class input_scaling : std::uint8_t {
  none,
  rms  ///< divided by its root mean square, eps = 1e-6
};
constexpr char const* word_of(input_scaling scaling) noexcept {
  switch (scaling) {
    case input_scaling::none:
      return "none";
    case input_scaling::rms:
      return "rms";
  }
  return nullptr;
}

/// Source: policies.md 11 and 15; the paper (arXiv:2407.02328) is silent on the position feature.
struct controller_options {
  gru_form gru = gru_form::pytorch;
  score_mode mode = score_mode::static_score;
  position_feature position = position_feature::index_over_max;
  input_scaling input = input_scaling::none;
  index_t max_length = 4096;  ///< tokens; divides index_over_max and distance

  /// Scores change at every step, so that the states of all tokens are kept.
  constexpr bool rescores() const noexcept { return mode != score_mode::static_score; }
  friend constexpr bool operator==(controller_options const&, controller_options const&) = default;
};

}  // namespace adore
