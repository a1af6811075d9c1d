// SPDX-License-Identifier: Apache-2.0
// Runs a whole cache of one row, one layer from attention rows that are written down: single steps
// through `observe`, prompts through keys and queries that are made to give these rows.
#pragma once

#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"
#include "tables.hpp"

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace adore::testing {

template <eviction_policy P>
class cache_driver {
 public:
  /// heads = query heads; channels bound the length of a prompt
  explicit cache_driver(P policy,
                        index_t heads = 1,
                        index_t kv_heads = 1,
                        cache_options options = {})
      : cache(host_store<float>({1, 1, kv_heads, 48, channels}),
              policy,
              with_unit_scale(std::move(options))),
        heads_(heads),
        kv_heads_(kv_heads) {
    cache.open(0);
  }

  static constexpr index_t channels = 16;
  kv_cache<host_store<float>, P> cache;

  position_list kept(index_t kv_head = 0) const { return cache.kept(0, 0, kv_head); }
  position_t next() const { return cache.books().next_position(0); }
  position_list attended(index_t kv_head = 0) const { return with(kept(kv_head), next()); }

  /// Queries of one step: [query][query head] -> row.
  using head_rows = std::vector<std::vector<weight_row>>;

  position_list step(head_rows const& rows, std::optional<index_t> accepted = std::nullopt) {
    auto const count = static_cast<index_t>(rows.size());
    row_tokens const row{0, count};
    cache.begin_step({&row, 1});
    append(count);
    position_list columns{no_position};  // a hole, which no row can name
    for (position_t p = 0; p < next() + count; ++p) columns.push_back(p);
    std::vector<float> weights;  // [token, head, column]
    for (auto const& query : rows) {
      REQUIRE(query.size() == static_cast<std::size_t>(heads_));
      for (weight_row const& head : query) {
        for (position_t const p : columns) {
          auto const weight = head.find(p);
          weights.push_back(weight == head.end() ? 0.0F : weight->second);
        }
      }
    }
    cache.observe(0,
                  token_view<float const>(
                      weights.data(), count, heads_, static_cast<index_t>(columns.size())),
                  columns);
    index_t const stay = accepted.value_or(count);
    cache.end_step({&stay, 1});
    return released();
  }
  /// One query, the same row for each query head.
  position_list step_row(weight_row const& row) {
    return step({std::vector<weight_row>(static_cast<std::size_t>(heads_), row)});
  }

  /// A dense prompt; rows[i][head] holds positive numbers in proportion to query i's weights.
  position_list prompt(head_rows const& rows) {
    auto const count = static_cast<index_t>(rows.size());
    REQUIRE(count <= channels);
    cache.begin_prompt({0, count});
    append(count);
    // key j is the j-th unit vector, so the query's channel j is the logit on j
    std::vector<float> queries;
    for (auto const& query : rows) {
      for (weight_row const& head : query) {
        for (position_t p = 0; p < channels; ++p) {
          auto const weight = head.find(p);
          bool const seen = weight != head.end() && weight->second > 0.0F;
          queries.push_back(seen ? std::log(weight->second) : -1000.0F);
        }
      }
    }
    std::vector<float> out(queries.size());
    cache.attend(0,
                 token_view<float const>(queries.data(), count, heads_, channels),
                 token_view<float>(out.data(), count, heads_, channels));
    cache.end_step();
    return released();
  }

  position_list released() const {
    position_list result;
    for (released_token const& token : cache.released()) result.push_back(token.position);
    return result;
  }

 private:
  static cache_options with_unit_scale(cache_options options) {
    options.attention_scale = 1.0F;
    return options;
  }
  void append(index_t count) {
    std::vector<float> k(static_cast<std::size_t>(count * kv_heads_ * channels), 0.0F);
    token_view<float> const view(k.data(), count, kv_heads_, channels);
    for (index_t j = 0; j < count; ++j) {
      for (index_t head = 0; head < kv_heads_; ++head) {
        view(j, head)[(next() + j) % channels] = 1.0F;
      }
    }
    cache.append(0, token_view<float const>(view), token_view<float const>(view));
  }

  index_t heads_, kv_heads_;
};

}  // namespace adore::testing
