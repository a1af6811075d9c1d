// SPDX-License-Identifier: Apache-2.0
// An adaptor that changes nothing can all that the policy inside can, and decides as it does.
#include "adore/policies/adaptors/forwards.hpp"

#include "adore/policies/every_policy.hpp"
#include "support/random_rows.hpp"

#include <doctest/doctest.h>

#include <type_traits>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

template <class P>
struct unchanged : forwards<unchanged<P>, P> {
  P of{};
};

/// The abilities that no policy of the list has.
struct with_rare_abilities {
  static constexpr scope default_scope = scope::model;
  struct slot_state {
    float logit = 0.0F;
  };
  constexpr index_t budget() const noexcept { return 3; }
  constexpr float keep_priority(slot_view, lane_view, slot_state const& state) const noexcept {
    return state.logit;
  }
  constexpr void score(slot_state& state, float logit) const noexcept { state.logit = logit; }
  constexpr index_t recall_count() const noexcept { return 7; }
  constexpr index_t granule() const noexcept { return 2; }
  constexpr index_t lane_budget(kv_shape, index_t layer, index_t) const noexcept { return layer; }
  constexpr index_t lane_prompt_budget(kv_shape, index_t, index_t, index_t n) const noexcept {
    return n;
  }
  void divide_budget(float const*, index_t, index_t, index_t* budgets) const { budgets[0] = 9; }
  void validate() const {}
};

template <class P, class Q>
constexpr bool same_abilities =
    std::is_same_v<slot_state_of<P>, slot_state_of<Q>>&&
        std::is_same_v<lane_state_of<P>, lane_state_of<Q>>&& P::default_scope ==
    Q::default_scope&& protects_first<P> == protects_first<Q>&& protects_newest<P> ==
    protects_newest<Q>&& observes_attention<P> == observes_attention<Q>&& scales_scores<P> ==
    scales_scores<Q>&& weighs_queries<P> == weighs_queries<Q>&& pools_prompt<P> ==
    pools_prompt<Q>&& ranks_once<P> == ranks_once<Q>&& ranks_in_levels<P> ==
    ranks_in_levels<Q>&& relents<P> == relents<Q>&& releases_blocks<P> ==
    releases_blocks<Q>&& releases_newest_of_equals<P> ==
    releases_newest_of_equals<Q>&& scores_keys<P> == scores_keys<Q>&& reads_tokens<P> ==
    reads_tokens<Q>&& numbers_tokens<P> == numbers_tokens<Q>&& scores_tokens<P> ==
    scores_tokens<Q>&& recalls_tokens<P> == recalls_tokens<Q>&& masks_attention<P> ==
    masks_attention<Q>&& marks_tokens<P> == marks_tokens<Q>&& masks_prompt<P> ==
    masks_prompt<Q>&& limits_attention<P> == limits_attention<Q>&& budgets_prompt<P> ==
    budgets_prompt<Q>&& budgets_lanes<P> == budgets_lanes<Q>&& budgets_prompt_lanes<P> ==
    budgets_prompt_lanes<Q>&& divides_budget<P> == divides_budget<Q>;

template <class... Policies>
constexpr bool all_forwarded(policy_list<Policies...>) {
  return ((eviction_policy<unchanged<Policies>> && same_abilities<Policies, unchanged<Policies>> &&
           same_abilities<Policies, unchanged<unchanged<Policies>>>)&&...);
}
static_assert(all_forwarded(every_policy{}));
static_assert(same_abilities<with_rare_abilities, unchanged<with_rare_abilities>>);
static_assert(unchanged<streaming_llm>::default_positions == position_scheme::cache_index);
static_assert(unchanged<strided>::priority_levels == 2);

template <class P>
void check_unchanged() {
  P policy = P::of_budget(8);
  if constexpr (requires { policy.window; }) policy.window = 4;
  check_same_sets(policy, unchanged<P>{.of = policy}, 40, 3);
}

}  // namespace

TEST_CASE("an adaptor that changes nothing decides as the policy inside") {
  check_unchanged<sliding_window>();
  check_unchanged<streaming_llm>();
  check_unchanged<strided>();
  check_unchanged<strided_doubling>();
  check_unchanged<h2o>();
  check_unchanged<decayed_h2o>();
  check_unchanged<h2o_per_age>();
  check_unchanged<h2o_algorithm_1>();
  check_unchanged<h2o_mask_simulation>();
  check_unchanged<tova>();
  check_unchanged<random_reservoir>();
  check_unchanged<random_victim>();
}

TEST_CASE("what only wrapped policies of others can is passed on with its arguments") {
  unchanged<with_rare_abilities> const adaptor;
  with_rare_abilities::slot_state state;
  adaptor.score(state, 2.5F);
  CHECK(state.logit == 2.5F);
  CHECK(adaptor.recall_count() == 7);
  CHECK(adaptor.granule() == 2);
  CHECK(adaptor.lane_budget({}, 11, 0) == 11);
  CHECK(adaptor.lane_prompt_budget({}, 0, 0, 13) == 13);
  index_t budget = 0;
  adaptor.divide_budget(nullptr, 1, 0, &budget);
  CHECK(budget == 9);
}

}  // namespace adore::testing
