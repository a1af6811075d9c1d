// SPDX-License-Identifier: Apache-2.0
// Compiles a cache for each policy that llama.h lets us carry out.
#include "llama_cpp/retention.hpp"

#include <adore/kv_cache.hpp>
#include <adore/policies/adaptors/with_protection.hpp>
#include <adore/policy_text.hpp>

#include <stdexcept>
#include <type_traits>

namespace llama_cpp_example {

namespace {

/// Why a policy cannot be carried out through llama.h: half a sentence, or nullptr.
template <adore::eviction_policy P>
constexpr char const* why_not() {
  if constexpr (adore::reads_tokens<P>) {
    return "it follows tokens that only a model trained for it has";
  } else if constexpr (adore::scores_keys<P>) {
    return "it looks at the keys, which llama.h does not show";
  } else if constexpr (adore::masks_attention<P>) {
    return "it hides tokens from some queries or heads instead of releasing them, and the mask is "
           "llama.cpp's own";
  } else if constexpr (adore::limits_attention<P>) {
    return "it chooses keys inside the attention, which is llama.cpp's own";
  } else if constexpr (adore::budgets_prompt<P>) {
    return "it selects once from a whole prompt, and here a prompt comes in chunks";
  } else if constexpr (adore::budgets_lanes<P>) {
    return "it gives layers budgets of their own, and a cell holds a token for all of them";
  } else {
    return nullptr;
  }
}

template <class P>
class retention_of final : public retention {
 public:
  retention_of(P const& policy,
               llama_context* context,
               adore::index_t most_new,
               std::uint64_t seed,
               adore::rebuild_options const& rebuild)
      : cache_(llama_store(context, 1),
               guarded{{}, policy, 0, 1},  // no sinks, the newest token
               {.reach = adore::scope::model,
                .positions = adore::position_scheme::original,  // llama.cpp turns the keys
                .max_new = most_new,
                .rebuild = rebuild}) {
    cache_.open(0, seed);
  }

  void begin_step(adore::row_tokens const& row) override { cache_.begin_step(row); }
  std::span<adore::rebuilt_token const> rebuilt() const override { return cache_.rebuilt(); }
  void placed(adore::index_t j, adore::index_t cell) override { cache_.placed(0, 0, 0, j, cell); }
  void observe(adore::index_t layer, adore::token_view<float const> weights) override {
    cache_.observe(layer, weights);
  }
  std::size_t end_step() override {
    cache_.end_step();
    return cache_.released().size();
  }

  llama_store& store() override { return cache_.store(); }
  adore::position_t next_position() const override { return cache_.books().next_position(0); }
  std::vector<adore::position_t> kept() const override { return cache_.kept(0); }

 private:
  using guarded = adore::with_protection<P>;
  adore::kv_cache<llama_store, guarded> cache_;
};

/// Calls `use(policy)` for a policy that can be carried out.
template <class Use>
void with_possible_policy(std::string_view text, std::optional<adore::index_t> budget, Use&& use) {
  adore::with_policy(text, budget, [&](auto const& policy) {
    using P = std::remove_cvref_t<decltype(policy)>;
    if constexpr (why_not<P>() == nullptr) {
      use(policy);
    } else {
      throw std::invalid_argument(std::string(P::name)
                                      .append(" cannot be carried out in llama.cpp: ")
                                      .append(why_not<P>()));
    }
  });
}

}  // namespace

policy_facts facts_of(std::string_view text, std::optional<adore::index_t> budget) {
  policy_facts facts;
  with_possible_policy(text, budget, [&](auto const& policy) {
    using P = std::remove_cvref_t<decltype(policy)>;
    facts.text = adore::to_text(policy);
    facts.budget = policy.budget();
    facts.observes = adore::observes_attention<P>;
    facts.last_query_only =
        adore::observes_attention<P> && adore::query_weight_of(policy, 1) == 0.0F;
    facts.takes_scores = adore::scores_tokens<P>;
    facts.guards_newest = policy.budget() != adore::unbounded && !adore::ranks_in_levels<P> &&
                          adore::newest_protected_by(policy, adore::lane_view{}) == 0;
    facts.default_scope = P::default_scope;
    if constexpr (requires { P::default_positions; })
      facts.default_positions = P::default_positions;
  });
  return facts;
}

std::unique_ptr<retention> make_retention(std::string_view text,
                                          std::optional<adore::index_t> budget,
                                          llama_context* context,
                                          adore::index_t most_new,
                                          std::uint64_t seed,
                                          adore::rebuild_options const& rebuild) {
  std::unique_ptr<retention> made;
  with_possible_policy(text, budget, [&](auto const& policy) {
    using P = std::remove_cvref_t<decltype(policy)>;
    made = std::make_unique<retention_of<P>>(policy, context, most_new, seed, rebuild);
  });
  return made;
}

}  // namespace llama_cpp_example
