// SPDX-License-Identifier: Apache-2.0
// Ada-KV: the KV heads of a layer share its budget by what their prompts' tokens are worth.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/order_key.hpp"
#include "adore/policies/adaptors/forwards.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// `exact`: floor share as in the code, sum kept by largest remainder. `code`: as the authors
/// round, which can lose slots. `paper`: the formula as printed, where `floor` is the adaptive
/// share.
enum class ada_reading : std::uint8_t { exact, code, paper };

/// Budgets of the heads of a layer whose mean is `mean`.
///
/// Source: Feng et al., arXiv:2407.11550, and the authors' code; policies.md 17.8.
/// @param chosen  [kv_head] how many of the layer's best kv_heads x mean tokens lie in each head
/// @param floor   in [0, 1], rounded to thousandths: the share that every head gets in any case
inline std::vector<index_t> ada_budgets(std::span<index_t const> chosen,
                                        index_t mean,
                                        float floor = 0.2F,
                                        ada_reading reading = ada_reading::exact) {
  constexpr std::int64_t whole = 1000;
  auto const share = static_cast<std::int64_t>(std::lround(floor * static_cast<float>(whole)));
  std::int64_t const even = reading == ada_reading::paper ? whole - share : share;
  std::vector<index_t> budgets;
  if (reading == ada_reading::code) {
    for (index_t const f : chosen) {
      double const adaptive = static_cast<double>(f * (whole - even)) / static_cast<double>(whole);
      std::int64_t const in_any_case = even * mean / whole;  // rounded down, as there
      budgets.push_back(
          static_cast<index_t>(std::nearbyint(adaptive + static_cast<double>(in_any_case))));
    }
    return budgets;
  }
  std::vector<std::pair<std::int64_t, std::size_t>> remainders;  // negated, so that ties go by head
  std::int64_t left = std::int64_t{mean} * static_cast<std::int64_t>(chosen.size());
  for (std::size_t head = 0; head < chosen.size(); ++head) {
    std::int64_t const numerator = chosen[head] * (whole - even) + even * mean;
    budgets.push_back(static_cast<index_t>(numerator / whole));
    remainders.emplace_back(-(numerator % whole), head);
    left -= numerator / whole;
  }
  std::sort(remainders.begin(), remainders.end());
  for (std::size_t i = 0; i < remainders.size() && left > 0; ++i, --left) {
    ++budgets[remainders[i].second];
  }
  return budgets;
}

/// Divides a layer's budget among its KV heads once, at the end of a dense prompt; protected tokens
/// are kept in every head and do not take part. The largest share may be `largest_budget`: the
/// store needs slots for it, or the prompt ends with a length_error.
///
///     ada_kv<snapkv>{.of = {.size = 512}}
///
/// Differs: ties between heads go to the newer token, then to the lower head.
template <eviction_policy P>
struct ada_kv : forwards<ada_kv<P>, P> {
  P of{};
  float floor = 0.2F;
  ada_reading reading = ada_reading::exact;
  static constexpr scope default_scope = scope::kv_head;

  /// @param priorities  [kv_head, token] of the candidates
  /// @param budgets     in/out, [kv_head]: what each head would keep, what it keeps
  void divide_budget(float const* priorities,
                     index_t kv_heads,
                     index_t tokens,
                     index_t* budgets) const {
    lane_view const end = end_of_prompt(budgets[0]);
    index_t const kept = first_protected_by(of, end) + newest_protected_by(of, end);
    index_t const mean = budgets[0] - kept;
    if (mean <= 0 || tokens <= mean) return;  // nothing to divide: every head keeps all or nothing
    std::vector<std::pair<std::uint64_t, index_t>> keys;  // best first after the partition
    for (index_t head = 0; head < kv_heads; ++head) {
      for (index_t j = 0; j < tokens; ++j) {
        float const priority = priorities[static_cast<std::ptrdiff_t>(head) * tokens + j];
        keys.emplace_back(~order_key(priority, j, releases_newest_of_equals<P>), head);
      }
    }
    auto const best = keys.begin() + static_cast<std::ptrdiff_t>(mean) * kv_heads;
    std::nth_element(keys.begin(), best, keys.end());
    std::vector<index_t> chosen(static_cast<std::size_t>(kv_heads), 0);
    std::for_each(keys.begin(), best, [&](auto const& key) {
      ++chosen[static_cast<std::size_t>(key.second)];
    });
    std::vector<index_t> const divided = ada_budgets(chosen, mean, floor, reading);
    for (std::size_t head = 0; head < divided.size(); ++head) budgets[head] = divided[head] + kept;
  }
  /// The most that one of a layer's heads can get: all that no other is sure of.
  index_t largest_budget(index_t kv_heads, index_t budget) const {
    lane_view const end = end_of_prompt(budget);
    index_t const kept = first_protected_by(of, end) + newest_protected_by(of, end);
    std::vector<index_t> chosen(static_cast<std::size_t>(kv_heads), 0);
    chosen[0] = (budget - kept) * kv_heads;
    return kept + ada_budgets(chosen, budget - kept, floor, reading)[0];
  }
  constexpr void validate() const {
    of.validate();
    require_field(floor >= 0.0F && floor <= 1.0F, "ada_kv.floor", floor, "must lie in [0, 1]");
  }

 private:
  static constexpr lane_view end_of_prompt(index_t budget) {
    return {.newest = 0,
            .occupied = 0,
            .budget = budget,
            .layer = 0,
            .kv_head = 0,
            .seed = 0,
            .ends_prompt = true};
  }
};

}  // namespace adore
