// SPDX-License-Identifier: Apache-2.0
// A small model with a state that runs up through its layers, so that a token which is computed
// again in another context gets other keys and values; and the same by a literal model of
// rebuilding (policies.md 12 and 13), one row at a time.
#pragma once

#include "adore/kv_cache.hpp"
#include "adore/philox.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

namespace adore::testing {

/// One query head per KV head; weights are drawn from a seed.
class deep_model {
 public:
  using row = std::vector<float>;  // [head, channel]

  deep_model(std::uint64_t seed, index_t layers, index_t heads, index_t channels)
      : layers_(layers), heads_(heads), channels_(channels), seed_(seed) {}

  index_t layers() const { return layers_; }
  index_t heads() const { return heads_; }
  index_t channels() const { return channels_; }
  index_t width() const { return heads_ * channels_; }

  row embedding(index_t id) const {
    row x(static_cast<std::size_t>(width()));
    for (index_t i = 0; i < width(); ++i) x[static_cast<std::size_t>(i)] = draw(1000, id, i);
    return x;
  }
  /// which = 0: query, 1: key, 2: value of a layer, from the state below it
  row project(row const& x, index_t layer, index_t which) const {
    row y(x.size());
    for (index_t i = 0; i < width(); ++i) {
      float sum = 0.0F;
      for (index_t j = 0; j < width(); ++j) {
        sum += draw(layer * 3 + which, i, j) * x[static_cast<std::size_t>(j)];
      }
      y[static_cast<std::size_t>(i)] = std::tanh(sum);
    }
    return y;
  }
  static row add(row const& x, row const& attended) {
    row y = x;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += attended[i];
    return y;
  }

 private:
  float draw(index_t which, index_t i, index_t j) const {
    std::uint64_t const key = seed_ * 1000003U + static_cast<std::uint64_t>(which);
    return uniform_of(key, static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(j)) - 0.5F;
  }
  static float uniform_of(std::uint64_t key, std::uint64_t i, std::uint64_t j) {
    std::uint64_t x = (key * 0x9E3779B97F4A7C15U) ^ (i * 0xC2B2AE3D27D4EB4FU + j);
    x ^= x >> 29U;
    x *= 0xBF58476D1CE4E5B9U;
    x ^= x >> 32U;
    return static_cast<float>(x >> 40U) * 0x1.0p-24F;
  }

  index_t layers_, heads_, channels_;
  std::uint64_t seed_;
};

/// All layers over the tokens of a step or prompt that has begun; their states move up.
template <class Cache>
void run_layers(deep_model const& model, Cache& cache, std::vector<deep_model::row>& states) {
  auto const tokens = static_cast<index_t>(states.size());
  for (index_t layer = 0; layer < model.layers(); ++layer) {
    std::vector<float> tensors[3];
    for (index_t which = 0; which < 3; ++which) {
      for (deep_model::row const& state : states) {
        auto const projected = model.project(state, layer, which);
        tensors[which].insert(tensors[which].end(), projected.begin(), projected.end());
      }
    }
    std::vector<float> out(tensors[0].size());
    auto const view = [&](std::vector<float> const& data) {
      return token_view<float const>(data.data(), tokens, model.heads(), model.channels());
    };
    cache.append(layer, view(tensors[1]), view(tensors[2]));
    cache.attend(layer, view(tensors[0]), {out.data(), tokens, model.heads(), model.channels()});
    for (std::size_t i = 0; i < states.size(); ++i) {
      auto const begin = out.begin() + static_cast<std::ptrdiff_t>(i) * model.width();
      states[i] = deep_model::add(states[i], deep_model::row(begin, begin + model.width()));
    }
  }
}

/// One step of one row of a cache: the new tokens and those that come back.
///
/// @param accepted  new tokens that stay; all of them if nothing is said
/// @return the state above the last layer of the last new token, of the last accepted one if
///         some are rejected
template <class Cache>
deep_model::row run_step(deep_model const& model,
                         Cache& cache,
                         row_tokens const& given,
                         std::optional<index_t> accepted = std::nullopt) {
  cache.begin_step(given);
  std::vector<deep_model::row> states;
  for (index_t const id : given.tokens) states.push_back(model.embedding(id));
  for (rebuilt_token const& back : cache.rebuilt()) states.push_back(model.embedding(back.id));
  run_layers(model, cache, states);
  index_t const stay = accepted.value_or(given.count);
  cache.end_step(stay);
  return states[static_cast<std::size_t>(stay) - 1];
}

/// Source: policies.md 12 and 13, by sets and maps; includes nothing of the library's stages.
class literal_rebuild {
 public:
  struct options {
    index_t keep = 4, recent = 0, sinks = 0, count = 2;
    rebuild_mask mask = rebuild_mask::position_causal;
    rebuild_admission admit = rebuild_admission::never;
    index_t period = 1;     // 1: every step; otherwise rebuilt rows stay in between
    bool stays = false;     // a rebuilt row stays until it is no longer wanted (on_entry, no limit)
    bool restores = false;  // the K and V of the release come back
  };

  literal_rebuild(deep_model const& model, options wanted) : model_(model), options_(wanted) {}

  std::set<position_t> cached() const { return keys_of(cached_); }
  std::set<position_t> back() const { return keys_of(guests_); }

  /// @param scores  [token] of all tokens so far, the new one last
  deep_model::row step(index_t id, std::vector<float> const& scores) {
    ids_.push_back(id);
    auto const n = static_cast<position_t>(ids_.size()) - 1;
    auto const better = [&](position_t a, position_t b) {
      float const x = scores[static_cast<std::size_t>(a)];
      float const y = scores[static_cast<std::size_t>(b)];
      return x != y ? x > y : a > b;
    };
    std::vector<position_t> released;
    for (position_t p = 0; p < n; ++p) {
      if (!cached_.contains(p)) released.push_back(p);
    }
    std::sort(released.begin(), released.end(), better);
    if (released.size() > static_cast<std::size_t>(options_.count)) {
      released.resize(static_cast<std::size_t>(options_.count));
    }
    std::set<position_t> computed;
    if (options_.stays || options_.restores) {
      std::set<position_t> const wanted(released.begin(), released.end());
      std::erase_if(guests_, [&](auto const& entry) { return !wanted.contains(entry.first); });
      for (position_t const p : released) {
        if (!guests_.contains(p)) computed.insert(p);
      }
    } else if (n % options_.period == 0) {
      guests_.clear();
      computed.insert(released.begin(), released.end());
    }
    if (options_.restores) {
      for (position_t const p : computed) guests_[p] = gone_.at(p);
      computed.clear();
    }
    computed.insert(n);

    std::map<position_t, deep_model::row> states;
    std::map<position_t, kv> fresh;
    for (position_t const p : computed) {
      states[p] = model_.embedding(ids_[static_cast<std::size_t>(p)]);
    }
    for (index_t layer = 0; layer < model_.layers(); ++layer) {
      for (auto const& [p, x] : states) {
        fresh[p].keys.push_back(model_.project(x, layer, 1));
        fresh[p].values.push_back(model_.project(x, layer, 2));
      }
      std::map<position_t, deep_model::row> above;
      for (auto const& [p, x] : states) {
        std::vector<std::pair<position_t, kv const*>> seen;
        for (auto const* const group : {&cached_, &guests_}) {
          for (auto const& [at, entry] : *group) {
            if (computed.contains(at)) continue;
            bool const causal = options_.mask == rebuild_mask::position_causal;
            if (!causal || at <= p) seen.emplace_back(at, &entry);
          }
        }
        for (auto const& [at, entry] : fresh) {
          if (options_.mask == rebuild_mask::none || at <= p) seen.emplace_back(at, &entry);
        }
        above[p] = deep_model::add(x, attend(model_.project(x, layer, 0), seen, layer));
      }
      states = above;
    }
    for (position_t const p : computed) {
      if (p != n) guests_[p] = fresh[p];
    }
    cached_[n] = fresh[n];
    if (options_.admit == rebuild_admission::compete) {
      cached_.insert(guests_.begin(), guests_.end());
      guests_.clear();
    }
    while (cached_.size() > static_cast<std::size_t>(options_.keep)) {
      std::vector<position_t> free;
      for (auto const& entry : cached_) {
        position_t const p = entry.first;
        if (p >= options_.sinks && p <= n - options_.recent) free.push_back(p);
      }
      position_t const worst = *std::max_element(free.begin(), free.end(), better);
      gone_[worst] = cached_[worst];
      cached_.erase(worst);
    }
    bool const stay = options_.stays || options_.restores || options_.period > 1;
    if (!stay) guests_.clear();
    return states[n];
  }

 private:
  struct kv {
    std::vector<deep_model::row> keys, values;  // [layer]
  };

  static std::set<position_t> keys_of(std::map<position_t, kv> const& from) {
    std::set<position_t> all;
    for (auto const& entry : from) all.insert(entry.first);
    return all;
  }
  deep_model::row attend(deep_model::row const& query,
                         std::vector<std::pair<position_t, kv const*>> const& seen,
                         index_t layer) const {
    deep_model::row out(query.size(), 0.0F);
    auto const l = static_cast<std::size_t>(layer);
    for (index_t head = 0; head < model_.heads(); ++head) {
      auto const first = static_cast<std::size_t>(head * model_.channels());
      std::size_t const end = first + static_cast<std::size_t>(model_.channels());
      std::vector<double> p;
      double sum = 0.0;
      for (auto const& entry : seen) {
        double dot = 0.0;
        for (std::size_t c = first; c < end; ++c)
          dot += double{query[c]} * entry.second->keys[l][c];
        p.push_back(std::exp(dot / std::sqrt(static_cast<double>(model_.channels()))));
        sum += p.back();
      }
      for (std::size_t c = first; c < end; ++c) {
        double x = 0.0;
        for (std::size_t i = 0; i < p.size(); ++i) x += p[i] / sum * seen[i].second->values[l][c];
        out[c] = static_cast<float>(x);
      }
    }
    return out;
  }

  deep_model const& model_;
  options options_;
  std::vector<index_t> ids_;
  std::map<position_t, kv> cached_, guests_, gone_;
};

}  // namespace adore::testing
