// SPDX-License-Identifier: Apache-2.0
// A Llama whose past a literal policy cuts down: double precision, token by token, one kept set for
// all layers and heads. It shares no code with llama.cpp or with the library.
#pragma once

#include "llama/naive_forward.hpp"
#include "support/literal_lane.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace llama_cpp_example::testing {

using llama_example::testing::naive_vector;
using llama_example::testing::tiny_model;
using llama_example::testing::tiny_tensor;

class naive_retention {
 public:
  /// @param shift_every  0: original rotary positions; else kept tokens move together in rotary
  ///                     positions as soon as the gaps among them amount to so many
  naive_retention(tiny_model const& model, literal::lane policy, int shift_every = 0)
      : model_(model),
        lane_(std::move(policy)),
        shift_every_(shift_every),
        past_(static_cast<std::size_t>(model.shape.layers)) {}

  /// A step of several tokens: none is released before its end. Logits of the last one.
  naive_vector step(std::vector<std::int32_t> const& tokens) {
    naive_vector logits;
    std::vector<literal::row> rows;
    for (std::int32_t const token : tokens) {
      weights_.clear();
      logits = forward(token);
      literal::row row;
      for (auto const& [position, weight] : weights_) row[position] = static_cast<float>(weight);
      rows.push_back(row);
      ++next_;
    }
    for (literal::release const& gone : lane_.step(rows)) {
      rotary_.erase(gone.position);
      for (auto& layer : past_) layer.erase(gone.position);
    }
    if (shift_every_ > 0 && free_rotary() - static_cast<int>(rotary_.size()) >= shift_every_) {
      int rank = 0;
      for (auto& [position, turned] : rotary_) turned = rank++;
    }
    return logits;
  }
  std::vector<int> kept() const { return lane_.kept(); }

 private:
  struct key_value {
    naive_vector key, value;  // the key unturned
  };

  /// The number after the largest that is taken.
  int free_rotary() const { return rotary_.empty() ? 0 : rotary_.rbegin()->second + 1; }

  naive_vector forward(std::int32_t token) {
    auto const& shape = model_.shape;
    double const epsilon =
        double{std::get<float>(model_.entries.at("llama.attention.layer_norm_rms_epsilon"))};
    rotary_[next_] = free_rotary();
    naive_vector x;
    for (int i = 0; i < shape.width; ++i) {
      x.push_back(model_.tensor("token_embd.weight").at(token, i));
    }
    for (int layer = 0; layer < shape.layers; ++layer) {
      auto const weight = [&](char const* name) -> tiny_tensor const& {
        return model_.tensor("blk." + std::to_string(layer) + "." + name + ".weight");
      };
      naive_vector normed = rms_norm(x, weight("attn_norm"), epsilon);
      auto& past = past_[static_cast<std::size_t>(layer)];
      past[next_] = {product(weight("attn_k"), normed), product(weight("attn_v"), normed)};
      add(x, product(weight("attn_output"), attention(past, product(weight("attn_q"), normed))));
      normed = rms_norm(x, weight("ffn_norm"), epsilon);
      naive_vector gate = product(weight("ffn_gate"), normed);
      naive_vector const up = product(weight("ffn_up"), normed);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
      add(x, product(weight("ffn_down"), gate));
    }
    return product(model_.tensor(shape.tied ? "token_embd.weight" : "output.weight"),
                   rms_norm(x, model_.tensor("output_norm.weight"), epsilon));
  }

  naive_vector attention(std::map<int, key_value> const& past, naive_vector query) {
    auto const& shape = model_.shape;
    auto const channels = static_cast<std::size_t>(shape.channels);
    turn(model_, query, rotary_.at(next_));
    std::map<int, naive_vector> keys;
    for (auto const& [position, seen] : past) {
      turn(model_, keys[position] = seen.key, rotary_.at(position));
    }
    naive_vector out;
    for (int head = 0; head < shape.heads; ++head) {
      std::size_t const q = static_cast<std::size_t>(head) * channels;
      std::size_t const kv =
          static_cast<std::size_t>(head / (shape.heads / shape.kv_heads)) * channels;
      std::map<int, double> weights;
      double total = 0.0;
      for (auto const& [position, key] : keys) {
        double score = 0.0;
        for (std::size_t c = 0; c < channels; ++c) score += query[q + c] * key[kv + c];
        total += weights[position] = std::exp(score / std::sqrt(static_cast<double>(channels)));
      }
      for (std::size_t c = 0; c < channels; ++c) {
        double sum = 0.0;
        for (auto const& [position, weight] : weights) {
          sum += weight / total * past.at(position).value[kv + c];
        }
        out.push_back(sum);
      }
      for (auto const& [position, weight] : weights) weights_[position] += weight / total;
    }
    return out;
  }

  static void add(naive_vector& x, naive_vector const& more) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += more[i];
  }

  tiny_model const& model_;
  literal::lane lane_;
  int shift_every_;
  int next_ = 0;
  std::map<int, int> rotary_;                   // position -> rotary position
  std::vector<std::map<int, key_value>> past_;  // [layer], position -> K and V
  std::map<int, double> weights_;               // of a token, over all layers and heads
};

}  // namespace llama_cpp_example::testing
