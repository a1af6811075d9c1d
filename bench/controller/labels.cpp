// SPDX-License-Identifier: Apache-2.0
#include "labels.hpp"

#include <adore/attention/top_k.hpp>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace controller_labels {

namespace {

std::size_t size(int count) {
  return static_cast<std::size_t>(count);
}

void check(bool holds, std::string const& sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

}  // namespace

query_range queries_of(label_options const& options, int tokens) {
  check(options.k >= 1, "k = " + std::to_string(options.k) + ": at least 1 is needed");
  bool const future = options.kind == label_kind::future;
  check(future == (options.horizon > 0),
        "horizon = " + std::to_string(options.horizon) + ": kind future, and only it, needs one");
  query_range const range{options.kind == label_kind::uniform ? tokens - 1 : options.k,
                          tokens - 1 - options.horizon};
  check(tokens > options.k && range.first <= range.last,
        "tokens = " + std::to_string(tokens) + ": more than k" + (future ? " + horizon" : "") +
            " = " + std::to_string(options.k + options.horizon) + " are needed");
  return range;
}

crop_labels::crop_labels(label_options const& options,
                         int layers,
                         int tokens,
                         std::vector<int> queries)
    : options_(options),
      layers_(layers),
      tokens_(tokens),
      outputs_(options.outputs == label_outputs::layers ? layers : 1),
      queries_(std::move(queries)),
      next_query_(size(layers), 0) {
  auto const [first, last] = queries_of(options_, tokens_);
  bool const uniform = options_.kind == label_kind::uniform;
  check(!uniform || outputs_ == 1,
        "outputs = layers: kind uniform makes one set for the whole model");
  check(!uniform || !options_.attention, "attention: kind uniform adds up votes, not attention");
  check(!uniform || options_.k >= 2, "k = 1: kind uniform takes the top k / 2 of each layer");
  check(!queries_.empty() &&
            std::is_sorted(queries_.begin(), queries_.end(), std::less_equal<>()) &&
            queries_.front() >= first && queries_.back() <= last,
        "queries: they must ascend from " + std::to_string(first) + " to " + std::to_string(last) +
            " at most");
  check(options_.mass_factor >= 0.0F && options_.mass_factor <= 1.0F,
        "mass_factor = " + std::to_string(options_.mass_factor) + ": must be between 0 and 1");
  std::size_t const all = size(outputs_) * queries_.size() * size(tokens_);
  if (uniform) {
    uniform_.emplace(adore::label_options{.count = options_.k});
  } else {
    sums_.attention.resize(all, 0.0F);
  }
  if (options_.mass_factor > 0.0F) {
    sums_.mass.resize(all, 0.0F);
    decayed_.resize(size(layers_) * size(tokens_), 0.0F);
  }
}

std::span<float> crop_labels::of_query(std::vector<float>& data,
                                       int layer,
                                       std::size_t query) const {
  std::size_t const output = outputs_ > 1 ? size(layer) : 0;
  return {data.data() + (output * queries_.size() + query) * size(tokens_), size(tokens_)};
}

void crop_labels::see(int layer, int query, std::span<float const> weights) {
  if (layer < 0 || layer >= layers_ || query >= tokens_ || query != next_query_[size(layer)] ||
      weights.size() != size(query) + 1) {
    throw std::logic_error("crop_labels::see: query " + std::to_string(query) + " of layer " +
                           std::to_string(layer) + " with " + std::to_string(weights.size()) +
                           " weights came out of turn");
  }
  ++next_query_[size(layer)];
  auto const add_to = [&](std::span<float> sums, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] += weights[i];
  };
  if (uniform_) {
    uniform_->add_layer(query, weights);
  } else {
    for (std::size_t q = 0; q < queries_.size(); ++q) {
      int const later = query - queries_[q];
      bool const counts =
          options_.kind == label_kind::query ? later == 0 : later >= 1 && later <= options_.horizon;
      // tokens after the sampled query are none of its business
      if (counts) add_to(of_query(sums_.attention, layer, q), size(queries_[q]) + 1);
    }
  }
  if (sums_.mass.empty()) return;
  std::span<float> const decayed(decayed_.data() + size(layer) * size(tokens_), size(tokens_));
  for (float& sum : decayed) sum *= options_.mass_factor;
  add_to(decayed, weights.size());
  auto const sampled = std::lower_bound(queries_.begin(), queries_.end(), query);
  if (sampled == queries_.end() || *sampled != query) return;
  auto const to = of_query(sums_.mass, layer, static_cast<std::size_t>(sampled - queries_.begin()));
  for (std::size_t i = 0; i < decayed.size(); ++i) to[i] += decayed[i];
}

void crop_labels::take(label_sums sums) {
  bool const fresh =
      std::all_of(next_query_.begin(), next_query_.end(), [](int next) { return next == 0; });
  if (!fresh || sums.attention.size() != sums_.attention.size() ||
      sums.mass.size() != sums_.mass.size() ||
      sums.votes.size() != (uniform_ ? size(tokens_) : 0) || sums.all.size() != sums.votes.size()) {
    throw std::logic_error("crop_labels::take: sums of another shape, or queries were seen before");
  }
  if (uniform_) uniform_->add_counted(sums.votes, sums.all);
  sums_.attention = std::move(sums.attention);
  sums_.mass = std::move(sums.mass);
  std::fill(next_query_.begin(), next_query_.end(), tokens_);
}

std::vector<float> crop_labels::attention() const {
  std::vector<float> mean = sums_.attention;
  if (options_.kind == label_kind::future) {
    for (float& sum : mean) sum /= static_cast<float>(options_.horizon);
  }
  return mean;
}

std::vector<std::uint8_t> crop_labels::sets() const {
  for (int layer = 0; layer < layers_; ++layer) {
    if (next_query_[size(layer)] != tokens_) {
      throw std::logic_error("crop_labels::sets: layer " + std::to_string(layer) + " has seen " +
                             std::to_string(next_query_[size(layer)]) + " of " +
                             std::to_string(tokens_) + " queries");
    }
  }
  std::size_t const bytes = (size(tokens_) + 7) / 8;
  std::size_t const sets = size(outputs_) * queries_.size();
  std::vector<std::uint8_t> packed(sets * bytes, 0);
  std::vector<std::uint8_t> chosen =
      uniform_ ? uniform_->sets().front().labels : std::vector<std::uint8_t>(size(tokens_));
  for (std::size_t set = 0; set < sets; ++set) {
    std::size_t const visible = size(queries_[set % queries_.size()]) + 1;
    if (!uniform_) {
      adore::mark_top_k({sums_.attention.data() + set * size(tokens_), visible},
                        options_.k,
                        false,
                        {chosen.data(), visible});
    }
    for (std::size_t i = 0; i < visible; ++i) {
      packed[set * bytes + i / 8] |= static_cast<std::uint8_t>(chosen[i] << (i % 8));
    }
  }
  return packed;
}

}  // namespace controller_labels
