// SPDX-License-Identifier: Apache-2.0
// Every policy with small numbers, what is known of it, and its literal twin: what the contract
// tests and the random operations run over.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/types.hpp"
#include "literal_lane.hpp"
#include "tested_cache.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace adore::testing {

struct policy_case {
  std::string name;  ///< with its numbers
  scope default_scope = scope::model;
  index_t budget = unbounded;  ///< after a step
  index_t prompt_budget = unbounded;
  index_t sinks = 0, recent = 0;  ///< protected
  bool observes = false, scores_keys = false, reads_tokens = false;
  bool ranks_once = false;
  /// Under no pressure the cache is a full one (policies.md 2): neither masks nor an own schedule.
  bool full_without_pressure = true;
  /// A budget below this is not compared: what then happens is left open.
  index_t least_budget = 0;
  bool budget_can_change = true;
  /// Lanes that span KV heads are not compared: whether votes are pooled before or after the heads
  /// are added up is left open, and it matters.
  bool compared_per_kv_head_only = false;

  std::function<std::unique_ptr<tested_cache>(kv_shape const&, cache_options const&)> make;
  /// The literal model of a lane; (layer, head) count for random policies.
  std::function<literal::lane(index_t layer, index_t kv_head)> twin;
};

/// Token ids of the sentinel cases.
inline constexpr index_t opening_id = 1;
inline constexpr index_t closing_id = 2;

/// All of them, each made once.
std::vector<policy_case> const& every_policy_case();

}  // namespace adore::testing
