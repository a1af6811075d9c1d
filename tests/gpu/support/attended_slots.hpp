// SPDX-License-Identifier: Apache-2.0
// Which slots of a lane a policy lets a query attend, by the rules of masks and of dynamic top-K
// written out.
#pragma once

#include <adore/concepts.hpp>
#include <adore/eviction/lane_slots.hpp>
#include <adore/types.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace adore::testing {

/// For each query head of a KV head, [slot] 1 if it is attended.
///
/// @param books       of the lane, in any slots: what the policy knows of its tokens
/// @param positions   [slot] of the lane
/// @param query       position of the query
/// @param first       the first head of the KV head
/// @param weights_of  head -> [slot] probabilities if nothing is hidden; no two that matter are
///                    equal
template <eviction_policy P, class WeightsOf>
std::vector<std::vector<char>> attended_slots(P const& policy,
                                              [[maybe_unused]] lane_slots<P> const& books,
                                              std::vector<position_t> const& positions,
                                              position_t query,
                                              head_view first,
                                              index_t group,
                                              [[maybe_unused]] WeightsOf&& weights_of) {
  std::size_t const slots = positions.size();
  auto const is_older = [&](std::size_t s) { return positions[s] >= 0 && positions[s] <= query; };
  std::vector<std::vector<char>> attended(static_cast<std::size_t>(group),
                                          std::vector<char>(slots, 0));
  for (auto& of_head : attended) {
    for (std::size_t s = 0; s < slots; ++s) of_head[s] = is_older(s) ? 1 : 0;
  }
  if constexpr (masks_attention<P>) {
    auto const slot_of = [&](position_t p) {
      return static_cast<index_t>(std::find(books.positions, books.positions + books.slots, p) -
                                  books.positions);
    };
    index_t const own = slot_of(query);
    for (index_t member = 0; member < group; ++member) {
      for (std::size_t s = 0; s < slots; ++s) {
        if (!is_older(s)) continue;
        index_t const key = slot_of(positions[s]);
        bool const sees = policy.sees(books.view(own),
                                      books.state(own),
                                      books.view(key),
                                      books.state(key),
                                      {first.layer, first.head + member, first.heads});
        if (!sees) attended[static_cast<std::size_t>(member)][s] = 0;
      }
    }
  }
  if constexpr (limits_attention<P>) {
    top_k_limit const limit = policy.attention_limit();
    auto const keep_best = [&](std::vector<double> const& score, std::vector<char>& of_head) {
      std::vector<std::size_t> order;
      for (std::size_t s = 0; s < slots; ++s) {
        if (is_older(s) && !(limit.include_self && positions[s] == query)) order.push_back(s);
      }
      std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return score[a] > score[b];
      });
      auto const count = static_cast<std::size_t>(limit.count - (limit.include_self ? 1 : 0));
      for (std::size_t i = count; i < order.size(); ++i) of_head[order[i]] = 0;
    };
    std::vector<double> together(slots, 0.0);
    for (index_t member = 0; member < group; ++member) {
      std::vector<double> const weights = weights_of(first.head + member);
      for (std::size_t s = 0; s < slots; ++s) together[s] += weights[s];
      if (limit.scope == top_k_scope::head) {
        keep_best(weights, attended[static_cast<std::size_t>(member)]);
      }
    }
    if (limit.scope == top_k_scope::kv_head) {
      for (auto& of_head : attended) keep_best(together, of_head);
    }
  }
  return attended;
}

}  // namespace adore::testing
