// SPDX-License-Identifier: Apache-2.0
// Makes a controller's weights from any source of named tensors, e.g. a safetensors file. What does
// not fit is refused in one sentence; the library reads no file itself.
#pragma once

#include "adore/controller/options.hpp"
#include "adore/controller/weights.hpp"
#include "adore/types.hpp"

#include <charconv>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <vector>

namespace adore {

/// A tensor as a file holds it.
struct named_tensor {
  std::vector<index_t> shape;
  std::span<float const> values;
};

/// Finds a tensor by its name, e.g. "gru.weight_ih_l0".
using tensor_lookup = std::function<std::optional<named_tensor>(std::string const&)>;
/// Finds the word of an option: "gru", "score_mode", "position_feature", "input", "max_length".
using text_lookup = std::function<std::optional<std::string>(std::string const&)>;

namespace detail {

/// Reads an option by its word, the default where the text does not give it.
template <class Enum>
void read_option(text_lookup const& text, char const* name, Enum& value) {
  auto const word = text(name);
  if (!word) return;
  std::string known;
  for (int i = 0; word_of(static_cast<Enum>(i)) != nullptr; ++i) {
    if (*word == word_of(static_cast<Enum>(i))) {
      value = static_cast<Enum>(i);
      return;
    }
    known += (i == 0 ? "" : ", ") + std::string(word_of(static_cast<Enum>(i)));
  }
  refuse_controller(std::string(name) + " = '" + *word + "': must be one of " + known);
}

inline controller_options read_options(text_lookup const& text) {
  controller_options options;
  read_option(text, "gru", options.gru);
  read_option(text, "score_mode", options.mode);
  if (options.mode == score_mode::distance) options.position = position_feature::distance;
  if (options.mode == score_mode::index_over_length) {
    options.position = position_feature::index_over_length;
  }
  read_option(text, "position_feature", options.position);
  read_option(text, "input", options.input);
  if (auto const word = text("max_length")) {
    char const* const end = word->data() + word->size();
    auto const read = std::from_chars(word->data(), end, options.max_length);
    if (read.ec != std::errc{} || read.ptr != end) {
      refuse_controller("max_length = '" + *word + "': must be a number of tokens");
    }
  }
  return options;
}

/// The tensor that sizes are read from.
inline std::vector<index_t> shape_of_matrix(tensor_lookup const& tensor, std::string const& name) {
  auto const found = tensor(name);
  if (!found) refuse_controller("tensor " + name + " is missing");
  bool fits = found->shape.size() == 2;
  for (index_t const length : found->shape) fits = fits && length >= 1 && length <= largest_size;
  if (!fits) {
    refuse_controller("tensor " + name + " has shape " + text_of(found->shape) +
                      ", expected a matrix of 1 to " + std::to_string(largest_size) +
                      " rows and columns");
  }
  return found->shape;
}

}  // namespace detail

/// Makes a controller's weights from named tensors; the library reads no file itself.
///
/// Sizes follow from output.weight [outputs, hidden] and gru.weight_ih_l0 [3 hidden, inputs] (or
/// input.weight [hidden, inputs]). An option that `text` does not give has its default.
///
/// @throws std::invalid_argument that names the tensor or option, what was found and what was
///         expected: a tensor that is missing, cut short, of another shape, not finite, or not used
///         by the options; an unknown word
inline controller_weights make_controller_weights(tensor_lookup const& tensor,
                                                  text_lookup const& text) {
  controller_weights weights;
  weights.options = detail::read_options(text);
  detail::require_options(weights.options);
  auto const output = detail::shape_of_matrix(tensor, "output.weight");
  weights.outputs = output[0];
  weights.hidden = output[1];
  weights.inputs = detail::shape_of_matrix(
      tensor, weights.options.gru == gru_form::none ? "input.weight" : "gru.weight_ih_l0")[1];
  controller_weights::tensors(
      weights, [&](std::string const& name, auto& values, auto const& shape, bool needed) {
        auto const found = tensor(name);
        if (!found && needed) detail::refuse_controller("tensor " + name + " is missing");
        if (!found) return;
        if (!needed) {
          detail::refuse_controller("tensor " + name + " is there, but not used with gru = " +
                                    word_of(weights.options.gru) +
                                    ", score_mode = " + word_of(weights.options.mode));
        }
        if (found->shape != shape) {
          detail::refuse_controller("tensor " + name + " has shape " +
                                    detail::text_of(found->shape) + ", expected " +
                                    detail::text_of(shape));
        }
        values.assign(found->values.begin(), found->values.end());
      });
  if (weights.options.gru != gru_form::none && tensor("input.weight")) {
    detail::refuse_controller("tensor input.weight is there, but not used with gru = " +
                              std::string(word_of(weights.options.gru)));
  }
  weights.validate();
  return weights;
}

}  // namespace adore
