// SPDX-License-Identifier: Apache-2.0
// Read `engine::step` first: it is the forward pass from token ids to logits, in order.
#include "llama/engine.hpp"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>

// OpenBLAS's own threads would spin beside ours; another BLAS has no such function.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace llama_example {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void add(std::vector<float>& to, std::vector<float> const& from) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

}  // namespace

engine::engine(model const& weights, int threads) : model_(weights), workers_(threads) {
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
}

std::span<float const> engine::step(std::span<group> groups) {
  if (groups.empty()) return {};
  begin(groups);

  for (int i = 0; i < tokens_; ++i) {
    float const* const row = model_.embedding.data.data() +
                             std::ptrdiff_t{ids_[static_cast<std::size_t>(i)]} * model_.width;
    std::copy_n(row, model_.width, x_.begin() + std::ptrdiff_t{i} * model_.width);
  }

  for (int layer = 0; layer < model_.layers; ++layer) {
    layer_weights const& w = model_.blocks[static_cast<std::size_t>(layer)];

    normalise(x_, w.attention_norm, normed_);
    multiply(w.query, normed_, q_);
    multiply(w.key, normed_, k_);
    multiply(w.value, normed_, v_);
    attend(groups, layer);
    multiply(w.output, attended_, added_);
    add(x_, added_);

    normalise(x_, w.feed_norm, normed_);
    multiply(w.gate, normed_, gate_);
    multiply(w.up, normed_, up_);
    workers_.for_each(tokens_, [&](int token) {
      auto const begin = static_cast<std::size_t>(token) * static_cast<std::size_t>(model_.hidden);
      for (std::size_t i = begin; i < begin + static_cast<std::size_t>(model_.hidden); ++i) {
        gate_[i] = gate_[i] / (1.0F + std::exp(-gate_[i])) * up_[i];  // SiLU
      }
    });
    multiply(w.down, gate_, added_);
    add(x_, added_);
  }

  normalise(x_, model_.final_norm, normed_);
  int const predicted = gather_new(normed_);
  logits_.resize(static_cast<std::size_t>(predicted) * static_cast<std::size_t>(model_.vocabulary));
  multiply(model_.output_head(), normed_, logits_, predicted);

  for (std::size_t g = 0; g < groups.size(); ++g) {
    auto const start = std::chrono::steady_clock::now();
    groups[g].cache->end_step({});
    stage_seconds_[g] += seconds_since(start);
  }
  return logits_;
}

/// Announces the step to every cache and makes room for its activations.
void engine::begin(std::span<group> groups) {
  for (group const& part : groups) {
    for (adore::row_tokens const& row : part.rows) {
      for (std::int32_t const id : row.tokens) {
        if (id >= 0 && id < model_.vocabulary) continue;
        throw std::invalid_argument("token id = " + std::to_string(id) + ": the model has " +
                                    std::to_string(model_.vocabulary) + " tokens");
      }
    }
    if (part.cache->takes_scores() && part.scorer == nullptr) {
      throw std::invalid_argument(part.cache->policy() +
                                  " ranks by a controller's scores: give the group a scorer");
    }
  }
  ids_.clear();
  first_token_.clear();
  new_tokens_.clear();
  stage_seconds_.assign(groups.size(), 0.0);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    auto const start = std::chrono::steady_clock::now();
    group& part = groups[g];
    first_token_.push_back(static_cast<int>(ids_.size()));
    if (part.scorer != nullptr) part.scorer->score(part.rows);
    if (part.is_prompt) {
      part.cache->begin_prompt(part.rows.front());
    } else {
      part.cache->begin_step(part.rows);
    }
    for (adore::row_tokens const& row : part.rows) {
      ids_.insert(ids_.end(), row.tokens.begin(), row.tokens.end());
    }
    new_tokens_.push_back(static_cast<int>(ids_.size()) - first_token_.back());
    for (adore::rebuilt_token const& back : part.cache->rebuilt()) ids_.push_back(back.id);
    stage_seconds_[g] += seconds_since(start);
  }
  tokens_ = static_cast<int>(ids_.size());
  auto const sized = [&](std::vector<float>& data, int per_token) {
    data.resize(static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(per_token));
  };
  for (auto* const data : {&x_, &normed_, &added_}) sized(*data, model_.width);
  for (auto* const data : {&q_, &attended_}) sized(*data, model_.heads * model_.channels);
  for (auto* const data : {&k_, &v_}) sized(*data, model_.kv_heads * model_.channels);
  for (auto* const data : {&gate_, &up_}) sized(*data, model_.hidden);
}

/// Each group's part of the batch goes through its own cache.
void engine::attend(std::span<group> groups, int layer) {
  int const heads = model_.heads;
  int const kv_heads = model_.kv_heads;
  int const channels = model_.channels;
  auto const attend_group = [&](int g) {
    group& part = groups[static_cast<std::size_t>(g)];
    int const first = first_token_[static_cast<std::size_t>(g)];
    bool const last = static_cast<std::size_t>(g) + 1 == groups.size();
    int const count = (last ? tokens_ : first_token_[static_cast<std::size_t>(g) + 1]) - first;
    auto const from = [first](std::vector<float>& data, int per_token) {
      return data.data() + std::ptrdiff_t{first} * per_token;
    };
    part.cache->append(layer,
                       {from(k_, kv_heads * channels), count, kv_heads, channels},
                       {from(v_, kv_heads * channels), count, kv_heads, channels});
    part.cache->attend(layer,
                       {from(q_, heads * channels), count, heads, channels},
                       {from(attended_, heads * channels), count, heads, channels},
                       part.watch);
  };
  auto const count = static_cast<int>(groups.size());
  attend_group(0);  // others may compare themselves with it
  workers_.for_each(count - 1, [&](int g) { attend_group(g + 1); });
}

/// Moves the new tokens' rows of [token, width] together; returns how many they are.
int engine::gather_new(std::vector<float>& rows) const {
  int to = 0;
  for (std::size_t g = 0; g < new_tokens_.size(); ++g) {
    auto const first = rows.begin() + std::ptrdiff_t{first_token_[g]} * model_.width;
    std::copy_n(first,
                std::ptrdiff_t{new_tokens_[g]} * model_.width,
                rows.begin() + std::ptrdiff_t{to} * model_.width);
    to += new_tokens_[g];
  }
  return to;
}

/// y[token, rows] = x[token, columns] W^T, the rows of W divided among the threads.
void engine::multiply(matrix const& w,
                      std::vector<float> const& x,
                      std::vector<float>& y,
                      int tokens) {
  constexpr int parts = 4;  // whatever the number of threads, so that the bits are the same
  workers_.for_each(parts, [&](int part) {
    int const first = static_cast<int>(std::int64_t{w.rows} * part / parts);
    int const rows = static_cast<int>(std::int64_t{w.rows} * (part + 1) / parts) - first;
    float const* const w_rows = w.data.data() + std::ptrdiff_t{first} * w.columns;
    if (tokens == 1) {
      cblas_sgemv(CblasRowMajor,
                  CblasNoTrans,
                  rows,
                  w.columns,
                  1.0F,
                  w_rows,
                  w.columns,
                  x.data(),
                  1,
                  0.0F,
                  y.data() + first,
                  1);
    } else {
      cblas_sgemm(CblasRowMajor,
                  CblasNoTrans,
                  CblasTrans,
                  tokens,
                  rows,
                  w.columns,
                  1.0F,
                  x.data(),
                  w.columns,
                  w_rows,
                  w.columns,
                  0.0F,
                  y.data() + first,
                  w.rows);
    }
  });
}

/// RMS norm of each token.
void engine::normalise(std::vector<float> const& x,
                       std::vector<float> const& gain,
                       std::vector<float>& y) const {
  auto const width = static_cast<std::size_t>(model_.width);
  for (std::size_t begin = 0; begin < x.size(); begin += width) {
    double squares = 0.0;
    for (std::size_t i = 0; i < width; ++i) squares += double{x[begin + i]} * double{x[begin + i]};
    auto const mean = static_cast<float>(squares / static_cast<double>(width));
    float const scale = 1.0F / std::sqrt(mean + model_.norm_epsilon);
    for (std::size_t i = 0; i < width; ++i) y[begin + i] = x[begin + i] * scale * gain[i];
  }
}

}  // namespace llama_example
