// SPDX-License-Identifier: Apache-2.0
// The forward pass of a Llama-family model over a batch, with the library as its whole KV cache.
#pragma once

#include "llama/model.hpp"
#include "llama/token_scorer.hpp"
#include "llama/workers.hpp"
#include <adore/any_cache.hpp>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace llama_example {

/// The sequences of a batch that share one cache.
struct group {
  adore::any_cache* cache = nullptr;
  std::vector<adore::row_tokens> rows;  ///< new tokens of this step, with their ids
  adore::any_cache::watcher watch{};    ///< sees this group's attention; may be empty
  bool is_prompt = false;               ///< one row's dense prompt instead of a step
  token_scorer* scorer = nullptr;       ///< for a policy that takes scores
};

class engine {
 public:
  /// @param threads  for matrix products and attention
  engine(model const& weights, int threads);

  model const& weights() const noexcept { return model_; }

  /// How its caches have to be set up: they turn queries and keys, in this model's layout.
  adore::cache_options cache_options() const;
  /// A cache for `request.rows` sequences; layers, heads and channels are filled in.
  std::unique_ptr<adore::any_cache> make_cache(std::string_view policy,
                                               adore::cache_request request,
                                               adore::cache_options options) const;

  /// One step of all groups. Attention sees group 0 first in each layer.
  ///
  /// @return logits [token, vocabulary] of all new tokens, group after group, row after row; valid
  ///         until the next step
  std::span<float const> step(std::span<group> groups);

  /// Seconds spent in the caches' begin_step and end_step of each group, in the last step.
  std::span<double const> stage_seconds() const noexcept { return stage_seconds_; }

 private:
  void begin(std::span<group> groups);
  void attend(std::span<group> groups, int layer);
  void multiply(matrix const& w, std::vector<float> const& x, std::vector<float>& y, int tokens);
  void multiply(matrix const& w, std::vector<float> const& x, std::vector<float>& y) {
    multiply(w, x, y, tokens_);
  }
  int gather_new(std::vector<float>& rows) const;
  void normalise(std::vector<float> const& x,
                 std::vector<float> const& gain,
                 std::vector<float>& y) const;

  model const& model_;
  workers workers_;
  int tokens_ = 0;                     // of the step
  std::vector<std::int32_t> ids_;      // [token], group after group: new ones, then rebuilt ones
  std::vector<int> first_token_;       // [group]
  std::vector<int> new_tokens_;        // [group]
  std::vector<float> x_, normed_;      // [token, width]
  std::vector<float> q_, k_, v_;       // [token, head, channel], [token, kv_head, channel] twice
  std::vector<float> attended_;        // [token, head, channel]
  std::vector<float> gate_, up_;       // [token, hidden]
  std::vector<float> added_;           // [token, width]
  std::vector<float> logits_;          // [token, vocabulary]
  std::vector<double> stage_seconds_;  // [group]
};

}  // namespace llama_example
