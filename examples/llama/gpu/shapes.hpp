// SPDX-License-Identifier: Apache-2.0
// The numbers of well-known models, for random weights of their shape or of one near it.
#pragma once

#include "llama/model.hpp"
#include <adore/policy_text.hpp>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace llama_example::gpu {

/// @return the numbers of a model, with no weights in it
/// @throws std::invalid_argument for another name
inline model shape_named(std::string_view name) {
  model m;
  m.norm_epsilon = 1e-5F;
  if (name == "7b") {  // Llama 2
    m.width = 4096, m.layers = 32, m.heads = 32, m.kv_heads = 32, m.channels = 128;
    m.hidden = 11008, m.vocabulary = 32000;
  } else if (name == "8b") {  // Llama 3
    m.width = 4096, m.layers = 32, m.heads = 32, m.kv_heads = 8, m.channels = 128;
    m.hidden = 14336, m.vocabulary = 128256, m.rope_base = 500000.0;
  } else if (name == "135m") {  // SmolLM2
    m.width = 576, m.layers = 30, m.heads = 9, m.kv_heads = 3, m.channels = 64;
    m.hidden = 1536, m.vocabulary = 49152, m.rope_base = 100000.0;
  } else {
    throw std::invalid_argument("there is no shape '" + std::string(name) +
                                "'; there are 7b, 8b, 135m");
  }
  m.rope_channels = m.channels;
  return m;
}

/// A shape as text: a name, or with numbers in place of that model's, as policies are written:
/// "8b(layers=8,width=16384,heads=128,hidden=53248)" is a piece of Llama 3.1 405B.
///
/// @throws std::invalid_argument for another name or field, and for a number that makes no model,
///         saying which and why
inline model shape_of(std::string_view text) {
  adore::policy_text const parsed = adore::policy_text::parse(text);
  model m = shape_named(parsed.name);
  auto const refuse = [&](std::string const& name,
                          std::string const& given,
                          std::string const& why) {
    throw std::invalid_argument("shape " + parsed.name + ": " + name + " = " + given + ": " + why);
  };
  struct field {
    std::string_view name;
    int* number;
    int most = 1 << 20;  // so that the sizes of rows and matrices are within int
  } const fields[] = {{"layers", &m.layers},
                      {"width", &m.width},
                      {"heads", &m.heads},
                      {"kv_heads", &m.kv_heads},
                      {"channels", &m.channels, 256},
                      {"hidden", &m.hidden},
                      {"vocabulary", &m.vocabulary}};
  for (auto const& [name, given] : parsed.fields) {
    auto const* const found = std::ranges::find(fields, name, &field::name);
    if (found == std::end(fields)) {
      std::string names;
      for (field const& each : fields) names.append(names.empty() ? "" : ", ").append(each.name);
      refuse(name, given, "a shape has no such number; its numbers are " + names);
    }
    int& number = *found->number;
    if (!adore::detail::read_value(given, number) || number < 1 || number > found->most) {
      refuse(name, given, "must be a number from 1 to " + std::to_string(found->most));
    }
  }
  if (m.heads % m.kv_heads != 0) {
    refuse("heads",
           std::to_string(m.heads),
           "must be a multiple of kv_heads = " + std::to_string(m.kv_heads));
  }
  m.rope_channels = m.channels;
  return m;
}

}  // namespace llama_example::gpu
