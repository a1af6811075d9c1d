// SPDX-License-Identifier: Apache-2.0
// The numbers of a controller under the names that PyTorch gives them, and which of them its
// options need.
#pragma once

#include "adore/controller/options.hpp"
#include "adore/types.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// One direction's recurrence. For `gru_form::none` a single linear layer: [hidden, inputs] and
/// [hidden], without the last two.
struct gru_weights {
  std::vector<float> input_weight;   ///< [3 hidden, inputs]: reset, update, candidate
  std::vector<float> input_bias;     ///< [3 hidden]
  std::vector<float> hidden_weight;  ///< [3 hidden, hidden]
  std::vector<float> hidden_bias;    ///< [3 hidden]
};

/// A linear layer: [out, in] row by row, and [out].
struct linear_weights {
  std::vector<float> weight;
  std::vector<float> bias;
};

/// All numbers of a controller. Matrices are row-major [out, in], as in PyTorch.
struct controller_weights {
  controller_options options;
  index_t inputs = 0;   ///< channels of a token's embedding (D)
  index_t hidden = 0;   ///< channels of the state (d')
  index_t outputs = 0;  ///< logits per token: 1, one per layer, or one per layer and KV head

  gru_weights forward;          ///< gru.*_l0, or input.* without a recurrence
  gru_weights backward;         ///< gru.*_l0_reverse; bidirectional only
  linear_weights merge;         ///< [hidden, 2 hidden]: forward, backward; bidirectional only
  linear_weights position;      ///< [hidden] each, of one number
  linear_weights interaction;   ///< [hidden, hidden]
  std::vector<float> query;     ///< [hidden, hidden]; query_conditioned only
  std::vector<float> bilinear;  ///< [hidden, hidden]; bilinear only
  linear_weights output;        ///< [outputs, hidden]

  bool goes_back() const noexcept { return options.mode == score_mode::bidirectional; }
  /// A state of the controller holds z of every token.
  bool keeps_states() const noexcept { return goes_back() || options.mode == score_mode::bilinear; }
  /// Rows of one direction's product with an embedding.
  index_t gate_rows() const noexcept { return options.gru == gru_form::none ? hidden : 3 * hidden; }
  /// ... and of all directions, the forward one first.
  index_t product_rows() const noexcept { return goes_back() ? 2 * gate_rows() : gate_rows(); }

  /// Calls `visit(name, values, shape, needed)` for every tensor that a controller may have.
  template <class Self, class Visit>
  static void tensors(Self& self, Visit&& visit) {
    using shape = std::vector<index_t>;
    bool const recurs = self.options.gru != gru_form::none;
    bool const both_ways = self.goes_back();
    index_t const d = self.hidden;
    index_t const rows = self.gate_rows();
    std::string const input = recurs ? "gru.weight_ih_l0" : "input.weight";
    visit(input, self.forward.input_weight, shape{rows, self.inputs}, true);
    visit(recurs ? "gru.bias_ih_l0" : "input.bias", self.forward.input_bias, shape{rows}, true);
    visit("gru.weight_hh_l0", self.forward.hidden_weight, shape{rows, d}, recurs);
    visit("gru.bias_hh_l0", self.forward.hidden_bias, shape{rows}, recurs);
    visit("gru.weight_ih_l0_reverse",
          self.backward.input_weight,
          shape{rows, self.inputs},
          both_ways);
    visit("gru.bias_ih_l0_reverse", self.backward.input_bias, shape{rows}, both_ways);
    visit("gru.weight_hh_l0_reverse", self.backward.hidden_weight, shape{rows, d}, both_ways);
    visit("gru.bias_hh_l0_reverse", self.backward.hidden_bias, shape{rows}, both_ways);
    visit("merge.weight", self.merge.weight, shape{d, 2 * d}, both_ways);
    visit("merge.bias", self.merge.bias, shape{d}, both_ways);
    visit("position.weight", self.position.weight, shape{d}, true);
    visit("position.bias", self.position.bias, shape{d}, true);
    visit("interaction.weight", self.interaction.weight, shape{d, d}, true);
    visit("interaction.bias", self.interaction.bias, shape{d}, true);
    bool const conditioned = self.options.mode == score_mode::query_conditioned;
    visit("query.weight", self.query, shape{d, d}, conditioned);
    visit("bilinear.weight", self.bilinear, shape{d, d}, self.options.mode == score_mode::bilinear);
    visit("output.weight", self.output.weight, shape{self.outputs, d}, true);
    visit("output.bias", self.output.bias, shape{self.outputs}, true);
  }

  /// @throws std::invalid_argument naming the tensor or option that does not fit the others
  void validate() const;
};

namespace detail {

/// So that no number of rows overflows.
inline constexpr index_t largest_size = 1 << 20;

inline std::string text_of(std::vector<index_t> const& shape) {
  std::string text = "[";
  for (index_t const length : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(length);
  }
  return text + "]";
}
inline std::size_t size_of(std::vector<index_t> const& shape) {
  std::size_t size = 1;
  for (index_t const length : shape) size *= static_cast<std::size_t>(length);
  return size;
}
[[noreturn]] inline void refuse_controller(std::string const& what) {
  throw std::invalid_argument("adore: controller: " + what);
}

/// A mode that is a position feature that moves.
constexpr bool is_position_mode(score_mode mode) noexcept {
  return mode == score_mode::distance || mode == score_mode::index_over_length;
}

inline void require_options(controller_options const& options) {
  std::string const mode = word_of(options.mode);
  std::string const feature = word_of(options.position);
  if (options.max_length < 1) {
    refuse_controller("max_length = " + std::to_string(options.max_length) +
                      ": must be at least 1");
  }
  if (is_position_mode(options.mode) && mode != feature) {
    refuse_controller("position_feature = " + feature + ": score_mode " + mode +
                      " is that feature");
  }
  if (options.mode == score_mode::static_score && changes_with_length(options.position)) {
    refuse_controller("score_mode = static: position_feature " + feature +
                      " changes the score at every step; name it as the score_mode");
  }
  if (options.mode == score_mode::bidirectional && options.gru == gru_form::none) {
    refuse_controller("gru = none: score_mode bidirectional needs a recurrence to run backwards");
  }
}

}  // namespace detail

inline void controller_weights::validate() const {
  detail::require_options(options);
  for (index_t const size : {inputs, hidden, outputs}) {
    if (size < 1 || size > detail::largest_size) {
      detail::refuse_controller("sizes are inputs " + std::to_string(inputs) + ", hidden " +
                                std::to_string(hidden) + ", outputs " + std::to_string(outputs) +
                                ": each must lie in [1, " + std::to_string(detail::largest_size) +
                                "]");
    }
  }
  tensors(*this, [](std::string const& name, auto& values, auto const& shape, bool needed) {
    std::size_t const expected = needed ? detail::size_of(shape) : 0;
    if (values.size() != expected) {
      detail::refuse_controller(
          "tensor " + name + " has " + std::to_string(values.size()) + " numbers, expected " +
          std::to_string(expected) +
          (needed ? " of shape " + detail::text_of(shape) : ": these options do not use it"));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      // on the bits, so that fast-math flags of the including engine cannot remove the test
      if ((std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000U) == 0x7F800000U) {
        detail::refuse_controller("tensor " + name + " has " + std::to_string(values[i]) +
                                  " at index " + std::to_string(i) + ", expected finite numbers");
      }
    }
  });
}

}  // namespace adore
