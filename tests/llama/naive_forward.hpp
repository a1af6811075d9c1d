// SPDX-License-Identifier: Apache-2.0
// The forward pass of a Llama as its papers write it: double precision, the whole text at once,
// causal attention, no cache. Slow and plain; the engine is checked against it.
#pragma once

#include "llama/tiny_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace llama_example::testing {

using naive_vector = std::vector<double>;

inline naive_vector product(tiny_tensor const& w, naive_vector const& x) {
  naive_vector y;
  for (int row = 0; row < w.rows; ++row) {
    double sum = 0.0;
    for (int column = 0; column < w.columns; ++column) {
      sum += w.at(row, column) * x[static_cast<std::size_t>(column)];
    }
    y.push_back(sum);
  }
  return y;
}

inline naive_vector rms_norm(naive_vector const& x, tiny_tensor const& gain, double epsilon) {
  double squares = 0.0;
  for (double const value : x) squares += value * value;
  naive_vector y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    y.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + epsilon) *
                gain.at(0, static_cast<int>(i)));
  }
  return y;
}

/// Turns channels 2i and 2i + 1 of each head by position x base^(-2i / n) / factor[i].
inline void turn(tiny_model const& model, naive_vector& heads, int position) {
  tiny_shape const& shape = model.shape;
  auto const channels = static_cast<std::size_t>(shape.channels);
  for (std::size_t begin = 0; begin < heads.size(); begin += channels) {
    for (int i = 0; i < shape.rope_channels / 2; ++i) {
      double const factor = shape.rope_factors ? model.tensor("rope_freqs.weight").at(0, i) : 1.0;
      double const angle =
          position * std::pow(double{shape.rope_base}, -2.0 * i / shape.rope_channels) / factor;
      double& a = heads[begin + 2 * static_cast<std::size_t>(i)];
      double& b = heads[begin + 2 * static_cast<std::size_t>(i) + 1];
      double const x = a;
      a = x * std::cos(angle) - b * std::sin(angle);
      b = x * std::sin(angle) + b * std::cos(angle);
    }
  }
}

/// Attention of the newest token to the `window` newest, itself included, [head, channel].
///
/// @param seen  out, [token] probabilities summed over the heads
inline naive_vector naive_attention(tiny_shape const& shape,
                                    naive_vector const& query,
                                    std::vector<naive_vector> const& keys,
                                    std::vector<naive_vector> const& values,
                                    std::size_t window,
                                    naive_vector& seen) {
  naive_vector result;
  std::size_t const first = keys.size() - std::min(window, keys.size());
  auto const channels = static_cast<std::size_t>(shape.channels);
  seen.assign(keys.size(), 0.0);
  for (int head = 0; head < shape.heads; ++head) {
    std::size_t const q = static_cast<std::size_t>(head) * channels;
    std::size_t const kv =
        static_cast<std::size_t>(head / (shape.heads / shape.kv_heads)) * channels;
    naive_vector weights;
    double total = 0.0;
    for (std::size_t t = first; t < keys.size(); ++t) {
      double score = 0.0;
      for (std::size_t c = 0; c < channels; ++c) score += query[q + c] * keys[t][kv + c];
      weights.push_back(std::exp(score / std::sqrt(static_cast<double>(channels))));
      total += weights.back();
    }
    for (std::size_t t = first; t < keys.size(); ++t) seen[t] += weights[t - first] / total;
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = 0.0;
      for (std::size_t t = first; t < keys.size(); ++t) {
        sum += weights[t - first] / total * values[t][kv + c];
      }
      result.push_back(sum);
    }
  }
  return result;
}

/// Logits [token][vocabulary] of a text.
///
/// @param window     newest tokens that a token attends to, itself included
/// @param attention  out, [layer][query][token] probabilities summed over the heads; or nothing
inline std::vector<naive_vector> naive_forward(
    tiny_model const& model,
    std::vector<std::int32_t> const& tokens,
    std::size_t window = std::numeric_limits<std::size_t>::max(),
    std::vector<std::vector<naive_vector>>* attention = nullptr) {
  tiny_shape const& shape = model.shape;
  double const epsilon =
      double{std::get<float>(model.entries.at("llama.attention.layer_norm_rms_epsilon"))};
  tiny_tensor const& embedding = model.tensor("token_embd.weight");
  std::vector<naive_vector> x;
  for (std::int32_t const token : tokens) {
    x.emplace_back();
    for (int i = 0; i < shape.width; ++i) x.back().push_back(embedding.at(token, i));
  }
  for (int layer = 0; layer < shape.layers; ++layer) {
    auto const weight = [&](char const* name) -> tiny_tensor const& {
      return model.tensor("blk." + std::to_string(layer) + "." + name + ".weight");
    };
    std::vector<naive_vector> keys;
    std::vector<naive_vector> values;
    std::vector<naive_vector> seen(x.size());
    for (std::size_t t = 0; t < x.size(); ++t) {
      naive_vector normed = rms_norm(x[t], weight("attn_norm"), epsilon);
      naive_vector query = product(weight("attn_q"), normed);
      keys.push_back(product(weight("attn_k"), normed));
      values.push_back(product(weight("attn_v"), normed));
      turn(model, query, static_cast<int>(t));
      turn(model, keys.back(), static_cast<int>(t));
      naive_vector const added = product(
          weight("attn_output"), naive_attention(shape, query, keys, values, window, seen[t]));
      for (std::size_t i = 0; i < added.size(); ++i) x[t][i] += added[i];

      normed = rms_norm(x[t], weight("ffn_norm"), epsilon);
      naive_vector gate = product(weight("ffn_gate"), normed);
      naive_vector const up = product(weight("ffn_up"), normed);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
      }
      naive_vector const fed = product(weight("ffn_down"), gate);
      for (std::size_t i = 0; i < fed.size(); ++i) x[t][i] += fed[i];
    }
    if (attention != nullptr) attention->push_back(seen);
  }
  std::vector<naive_vector> logits;
  for (naive_vector const& token : x) {
    logits.push_back(product(model.tensor(shape.tied ? "token_embd.weight" : "output.weight"),
                             rms_norm(token, model.tensor("output_norm.weight"), epsilon)));
  }
  return logits;
}

}  // namespace llama_example::testing
