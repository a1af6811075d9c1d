// SPDX-License-Identifier: Apache-2.0
// Compiles every policy's cache once, for all tests, and tests what is true of each by its type.
#include "every_policy.hpp"

#include "adore/kv_cache.hpp"
#include "adore/philox.hpp"
#include "adore/policies/every_policy.hpp"
#include "adore/policy_text.hpp"
#include "adore/stores/host_store.hpp"
#include "literal_model.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace adore::testing {

namespace {

template <class P>
class tested_cache_of final : public tested_cache {
 public:
  tested_cache_of(P policy, kv_shape const& shape, cache_options const& options)
      : cache_(host_store<float>(shape), policy, options) {}

  void open(index_t row, std::uint64_t seed) override { cache_.open(row, seed); }
  void close(index_t row) override { cache_.close(row); }
  void fork(index_t from, index_t to) override { cache_.fork(from, to); }
  row_snapshot snapshot(index_t row) const override { return cache_.snapshot(row); }
  void restore(index_t row, row_snapshot const& saved) override { cache_.restore(row, saved); }
  void begin_step(std::span<row_tokens const> rows) override { cache_.begin_step(rows); }
  void begin_prompt(index_t row, index_t count, std::span<index_t const> tokens) override {
    cache_.begin_prompt({row, count, tokens});
  }
  std::vector<position_t> positions() const override {
    auto const all = cache_.positions();
    return {all.begin(), all.end()};
  }
  void append(index_t layer, token_view<float const> k, token_view<float const> v) override {
    cache_.append(layer, k, v);
  }
  void attend(index_t layer, token_view<float const> q, token_view<float> out) override {
    cache_.attend(layer, q, out);
  }
  void observe(index_t layer,
               token_view<float const> weights,
               std::span<position_t const> columns) override {
    cache_.observe(layer, weights, columns);
  }
  void end_step(std::span<index_t const> accepted) override { cache_.end_step(accepted); }
  void set_budget(index_t row, index_t budget) override { cache_.set_budget(row, budget); }
  void reserve(index_t row, index_t tokens) override { cache_.reserve(row, tokens); }

  scope reach() const override { return cache_.reach(); }
  kv_shape shape() const override { return cache_.books().shape(); }
  bool is_open(index_t row) const override { return cache_.books().is_open(row); }
  position_t next(index_t row) const override { return cache_.books().next_position(row); }
  index_t lanes_per_row() const override { return cache_.books().lanes_per_row(); }
  index_t lane(index_t row, index_t layer, index_t kv_head) const override {
    return cache_.books().lane(row, layer, kv_head);
  }
  index_t layer_of(index_t lane) const override { return cache_.books().layer_of(lane); }
  index_t head_of(index_t lane) const override { return cache_.books().head_of(lane); }
  index_t budget(index_t lane) const override { return cache_.books().budget(lane); }
  position_list kept(index_t lane) const override { return cache_.books().kept(lane); }
  std::span<released_token const> released() const override { return cache_.released(); }

 private:
  kv_cache<host_store<float>, P> cache_;
};

using twin_maker = std::function<literal::lane(index_t, index_t)>;

/// Facts that follow from the type, and both makers.
template <class P, class Twin>
policy_case describe(P policy, Twin&& twin) {
  policy_case result;
  result.name = to_text(policy);
  result.default_scope = P::default_scope;
  result.budget = policy.budget();
  result.prompt_budget = policy.budget();
  if constexpr (budgets_prompt<P>) result.prompt_budget = policy.prompt_budget();
  if constexpr (protects_first<P>) result.sinks = policy.protected_first({});
  if constexpr (protects_newest<P>) result.recent = policy.protected_newest({});
  result.observes = observes_attention<P>;
  result.scores_keys = scores_keys<P>;
  result.reads_tokens = reads_tokens<P>;
  result.ranks_once = ranks_once<P>;
  result.full_without_pressure = !masks_attention<P> && !limits_attention<P>;
  result.make = [policy](kv_shape const& shape, cache_options const& options) {
    return std::make_unique<tested_cache_of<P>>(policy, shape, options);
  };
  if constexpr (std::is_base_of_v<literal::rule, std::remove_cvref_t<Twin>>) {
    result.twin = [twin](index_t, index_t) { return literal::lane(twin); };
  } else {
    result.twin = twin;
  }
  return result;
}

/// Where nothing is ranked and nothing released but by a budget from outside: oldest first.
literal::keep_all const keeps_all{};

/// The first `size` tokens stay: what Algorithm 1 comes to.
class first_come : public literal::rule_of<first_come> {
 public:
  explicit first_come(int size) : size_(size) {}
  int budget() const override { return size_; }
  float priority(int position, literal::facts const&) const override {
    return static_cast<float>(-position);
  }

 private:
  int size_;
};

/// A priority that is drawn for each token at each step, not a rank as in the literal model's own
/// rule: that way the draws of both sides are the same.
class drawn_each_step : public literal::rule_of<drawn_each_step> {
 public:
  drawn_each_step(int size, index_t layer, index_t head)
      : size_(size), layer_(layer), head_(head) {}
  int budget() const override { return size_; }
  float priority(int position, literal::facts const& now) const override {
    std::uint64_t const counter =
        (static_cast<std::uint64_t>(now.newest) << 32U) | static_cast<std::uint32_t>(position);
    return unit_float(
        static_cast<std::uint32_t>(philox(stream_key(now.seed, layer_, head_), counter)));
  }

 private:
  int size_;
  index_t layer_, head_;
};

literal::lane reservoir_twin(int size, index_t layer, index_t head) {
  return literal::lane(literal::reservoir(size, [=](std::uint64_t seed, int position) {
    return unit_float(static_cast<std::uint32_t>(
        philox(stream_key(seed, layer, head), static_cast<std::uint32_t>(position))));
  }));
}

std::vector<policy_case> make_cases() {
  std::vector<policy_case> cases;
  auto const add = [&](auto policy, auto twin) -> policy_case& {
    cases.push_back(describe(policy, std::move(twin)));
    return cases.back();
  };
  add(keep_all{}, keeps_all);
  add(sliding_window{.size = 4}, literal::sliding_window(4));
  add(sliding_window{.size = 0}, literal::sliding_window(0));
  add(streaming_llm{.sinks = 2, .window = 3}, literal::streaming_llm(2, 3));
  add(streaming_llm{.sinks = 0, .window = 4}, literal::sliding_window(4));
  // an unbounded stride releases off the grid: it is full only while its window is not over
  add(strided{.interval = 3, .window = 2, .phase = 1}, literal::strided(3, 2, 1))
      .full_without_pressure = false;
  add(strided{.interval = 3, .window = 2, .bound = stride_bound::drop_oldest_grid, .limit = 6},
      literal::strided(3, 2, 0, literal::strided::bound::drop_oldest_grid, 6))
      .full_without_pressure = false;  // in a dense prompt it masks off the grid, bounded or not
  // a budget that leaves the token at `phase` as the only candidate is left open by the rule
  add(strided_doubling{.interval = 2, .window = 2, .limit = 6},
      literal::strided(2, 2, 0, literal::strided::bound::double_stride, 6))
      .least_budget = 4;
  add(h2o{.heavy = 2, .recent = 2}, literal::h2o(2, 2));
  add(h2o{.heavy = 3, .recent = 0}, literal::h2o(3, 0));
  add(decayed_h2o{.heavy = 4, .recent = 1, .factor = 0.5F}, literal::decayed_h2o(4, 1, 0.5F));
  add(h2o_per_age{.heavy = 3, .recent = 2}, literal::h2o_per_age(3, 2));
  // its marks have a test of their own, here only its releases: none
  add(h2o_mask_simulation{.heavy = 2, .recent = 2}, keeps_all).budget_can_change = false;
  add(h2o_algorithm_1{.size = 5}, first_come(5));
  add(tova{.size = 4}, literal::tova(4));
  add(tova{.size = 3, .protect_newest = true}, literal::tova(3, true));
  add(key_norm{.size = 4}, literal::key_norm(4));
  add(key_norm{.size = 4, .recent = 2}, literal::key_norm(4, 2));
  add(random_reservoir{.size = 4},
      twin_maker([](index_t layer, index_t head) { return reservoir_twin(4, layer, head); }));
  add(random_victim{.size = 4}, twin_maker([](index_t layer, index_t head) {
        return literal::lane(drawn_each_step(4, layer, head));
      }));
  using literal_snapkv = literal::snapkv;
  policy_case& pooled = add(snapkv{.size = 6, .window = 4, .kernel = 3, .pool = vote_pooling::max},
                            literal_snapkv(4, 6, 3, literal_snapkv::pool::max));
  pooled.budget_can_change = false;
  pooled.compared_per_kv_head_only = true;
  add(snapkv{.size = 6, .window = 4, .kernel = 3, .then = after_prompt::window},
      literal_snapkv(4, 6, 3, literal_snapkv::pool::avg, literal_snapkv::then::window))
      .compared_per_kv_head_only = true;
  // from which votes H2O goes on is left open; without pooling there is but one answer
  add(snapkv{.size = 6,
             .window = 4,
             .kernel = 3,
             .pool = vote_pooling::none,
             .then = after_prompt::h2o},
      literal_snapkv(4, 6, 3, literal_snapkv::pool::none, literal_snapkv::then::h2o));
  add(sentinel{.open = opening_id, .close = closing_id}, literal::sentinel());
  add(sparse_transformer{.stride = 3}, keeps_all);
  add(dynamic_top_k{.count = 3}, keeps_all);
  // without a controller all scores are 0; with one they have tests of their own
  add(adaptive_release{.keep = 6, .recent = 2, .sinks = 1}, literal::adaptive_release(6, 2, 1));
  add(adaptive_release::paper(4), literal::adaptive_release(4, 0, 0));
  add(attentive_release{.keep = 5, .recent = 1, .sinks = 1, .factor = 0.5F},
      literal::attentive_release(5, 1, 1, 0.5F, 1e-6F));
  return cases;
}

template <class... Policies>
void check_types(policy_list<Policies...>) {
  static_assert((std::is_trivially_copyable_v<Policies> && ...));
  static_assert((std::is_trivially_copyable_v<slot_state_of<Policies>> && ...));
  static_assert((std::is_trivially_copyable_v<lane_state_of<Policies>> && ...));
  static_assert((eviction_policy<Policies> && ...));
}

}  // namespace

std::vector<policy_case> const& every_policy_case() {
  static std::vector<policy_case> const cases = make_cases();
  return cases;
}

TEST_CASE("the cases of the tests cover the list of all policies") {
  check_types(every_policy{});
  std::set<std::string> covered;
  for (policy_case const& c : every_policy_case())
    covered.insert(c.name.substr(0, c.name.find('(')));
  [&]<class... Policies>(policy_list<Policies...>) {
    for (std::string_view const name : {std::string_view(Policies::name)...}) {
      CHECK_MESSAGE(
          covered.contains(std::string(name)), name, " has no case in every_policy_test.cpp");
    }
  }(every_policy{});
}

}  // namespace adore::testing
