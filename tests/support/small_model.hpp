// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values that depend on a sequence's seed, the layer and the position alone: a
// sequence sees the same numbers whatever row, chunk or batch it runs in.
#pragma once

#include "adore/philox.hpp"
#include "every_policy.hpp"
#include "tested_cache.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace adore::testing {

/// One sequence's part of a step.
struct sequence_part {
  index_t row;
  std::uint64_t seed;
  index_t count = 1;
};

class small_model {
 public:
  small_model(index_t layers, index_t heads, index_t kv_heads, index_t channels)
      : layers_(layers), heads_(heads), kv_heads_(kv_heads), channels_(channels) {}

  /// [layer, head, channel] outputs of a token, by (seed, position).
  using outputs = std::map<std::pair<std::uint64_t, position_t>, std::vector<float>>;
  outputs seen;

  void step(tested_cache& cache, std::vector<sequence_part> const& parts) {
    std::vector<row_tokens> rows;
    std::vector<std::vector<index_t>> ids;
    for (sequence_part const& part : parts) {
      ids.push_back(ids_from(cache.next(part.row), part.count));
      rows.push_back({part.row, part.count, ids.back()});
    }
    auto const tokens = tokens_of(cache, parts);
    cache.begin_step(rows);
    forward(cache, tokens);
    cache.end_step();
  }
  void prompt(tested_cache& cache, sequence_part part) {
    auto const tokens = tokens_of(cache, {part});
    auto const ids = ids_from(0, part.count);
    cache.begin_prompt(part.row, part.count, ids);
    forward(cache, tokens);
    cache.end_step();
  }

  using token = std::pair<std::uint64_t, position_t>;  // seed, position

  /// which = 0: queries, 1: keys, 2: values; [token, head, channel]
  std::vector<float> tensor(std::vector<token> const& tokens,
                            index_t layer,
                            index_t which,
                            index_t heads) const {
    std::vector<float> result;
    for (auto const& [seed, position] : tokens) {
      std::uint32_t const key = stream_key(seed, layer, which);
      for (index_t i = 0; i < heads * channels_; ++i) {
        std::uint64_t const counter =
            (static_cast<std::uint64_t>(position) << 32U) | static_cast<std::uint32_t>(i);
        result.push_back(4.0F * unit_float(static_cast<std::uint32_t>(philox(key, counter))) -
                         2.0F);
      }
    }
    return result;
  }

 private:
  /// Every seventh word opens a span, the third after it closes it.
  static std::vector<index_t> ids_from(position_t first, index_t count) {
    std::vector<index_t> ids;
    for (position_t p = first; p < first + count; ++p) {
      ids.push_back(p % 7 == 2 ? opening_id : p % 7 == 5 ? closing_id : 7);
    }
    return ids;
  }
  static std::vector<token> tokens_of(tested_cache const& cache,
                                      std::vector<sequence_part> const& parts) {
    std::vector<token> tokens;
    for (sequence_part const& part : parts) {
      for (index_t j = 0; j < part.count; ++j) {
        tokens.emplace_back(part.seed, cache.next(part.row) + j);
      }
    }
    return tokens;
  }
  void forward(tested_cache& cache, std::vector<token> const& tokens) {
    auto const count = static_cast<index_t>(tokens.size());
    std::size_t const size = static_cast<std::size_t>(heads_ * channels_);
    for (index_t layer = 0; layer < layers_; ++layer) {
      auto const q = tensor(tokens, layer, 0, heads_);
      auto const k = tensor(tokens, layer, 1, kv_heads_);
      auto const v = tensor(tokens, layer, 2, kv_heads_);
      std::vector<float> out(q.size());
      cache.append(layer,
                   token_view<float const>(k.data(), count, kv_heads_, channels_),
                   token_view<float const>(v.data(), count, kv_heads_, channels_));
      cache.attend(layer,
                   token_view<float const>(q.data(), count, heads_, channels_),
                   token_view<float>(out.data(), count, heads_, channels_));
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        auto const begin = out.begin() + static_cast<std::ptrdiff_t>(i * size);
        auto& of_token = seen[tokens[i]];
        of_token.insert(of_token.end(), begin, begin + static_cast<std::ptrdiff_t>(size));
      }
    }
  }

  index_t layers_, heads_, kv_heads_, channels_;
};

}  // namespace adore::testing
