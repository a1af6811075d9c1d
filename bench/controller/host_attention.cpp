// SPDX-License-Identifier: Apache-2.0
#include "host_attention.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

namespace controller_labels {

namespace {

/// Tokens of a sequence per step: enough for matrix products, few enough for their activations.
constexpr std::size_t tokens_per_step = 128;

/// Adds up the KV heads of a layer, which come one after the other.
class layer_attention {
 public:
  layer_attention(crop_labels& labels, int kv_heads) : labels_(labels), kv_heads_(kv_heads) {}

  void see(adore::attention_record const& seen) {
    if (seen.kv_head == 0) weights_.assign(seen.weights.size(), 0.0F);
    for (std::size_t i = 0; i < weights_.size(); ++i) weights_[i] += seen.weights[i];
    // full attention holds every position, so the query's own is the last
    if (seen.kv_head == kv_heads_ - 1) labels_.see(seen.layer, seen.positions.back(), weights_);
  }

 private:
  crop_labels& labels_;
  int kv_heads_;
  std::vector<float> weights_;  // [token], of one query and layer
};

}  // namespace

void show_attention(llama_example::engine& engine, std::span<labelled_crop> crops) {
  if (crops.empty()) return;
  std::size_t const tokens = crops.front().tokens.size();
  adore::cache_options options = engine.cache_options();
  options.max_new = static_cast<adore::index_t>(tokens_per_step);
  std::vector<std::unique_ptr<adore::any_cache>> caches;
  std::vector<layer_attention> watched;
  for (labelled_crop& crop : crops) {
    caches.push_back(
        engine.make_cache("keep_all", {.tokens = static_cast<adore::index_t>(tokens)}, options));
    caches.back()->open(0, 0);
    watched.emplace_back(crop.labels, engine.weights().kv_heads);
  }
  for (std::size_t begin = 0; begin < tokens; begin += tokens_per_step) {
    std::size_t const count = std::min(tokens_per_step, tokens - begin);
    std::vector<llama_example::group> groups;
    for (std::size_t i = 0; i < crops.size(); ++i) {
      groups.push_back(
          {.cache = caches[i].get(),
           .rows = {{0, static_cast<adore::index_t>(count), crops[i].tokens.subspan(begin, count)}},
           .watch = [&watched, i](auto const& seen) { watched[i].see(seen); }});
    }
    engine.step(groups);
  }
}

}  // namespace controller_labels
