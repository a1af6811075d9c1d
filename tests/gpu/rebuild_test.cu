// SPDX-License-Identifier: Apache-2.0
// Released tokens that come back on the device: the same choices and the same attention as on the
// host, step by step, for several rows at once.
#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/decode_attention.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/device_ledger.cuh"
#include "adore/gpu/device_rebuild.cuh"
#include "adore/gpu/device_store.cuh"
#include "adore/gpu/device_tier.cuh"
#include "adore/gpu/token_scores.cuh"
#include "adore/kv_cache.hpp"
#include "adore/policies/adaptive_release.hpp"
#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/stores/host_store.hpp"
#include "rebuild/deep_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace {

using namespace adore;
using adore::testing::deep_model;

constexpr index_t channels = 64;
constexpr index_t longest = 64;

/// Both sides of one cache, fed with the same tokens.
template <class P>
class both_sides {
 public:
  both_sides(P policy, index_t rows, rebuild_options const& wanted)
      : model_(11, 2, 2, channels),
        rows_(rows),
        host_(host_store<float>({rows, 2, 2, slots(policy, wanted), channels}),
              policy,
              options_of(wanted)),
        ledger_(policy,
                {rows, 2, 2, slots(policy, wanted), channels},
                scope::model,
                1,
                0,
                wanted.count,
                longest),
        store_({rows, 2, 2, slots(policy, wanted), channels}),
        rebuild_(wanted, ledger_.view()),
        ids_(static_cast<std::size_t>(rows + rebuild_.pool())) {
    if (auto const* const from = std::get_if<restore>(&wanted.schedule)) {
      tier_.emplace(store_.shape(), longest, from->limit_bytes);
    }
    for (index_t row = 0; row < rows; ++row) {
      host_.open(row);
      ledger_.open_async(nullptr, row);
    }
    for (index_t layer = 0; layer < 2; ++layer) {  // NaN where nobody is: it must not matter
      for (auto const& view : {store_.keys(layer), store_.values(layer)}) {
        gpu::check(cudaMemset(view.data, 0xFF, store_.allocated_bytes() / 4));
      }
    }
    weights_ = gpu::device_buffer<float>(static_cast<std::size_t>(2 * rows * 2) *
                                         static_cast<std::size_t>(ledger_.view().stride));
  }

  /// @param scores  [row][token]; empty for a policy that takes none
  void step(std::vector<index_t> const& new_ids, std::vector<std::vector<float>> const& scores) {
    std::vector<row_tokens> given;
    for (index_t row = 0; row < rows_; ++row) {
      auto const r = static_cast<std::size_t>(row);
      row_tokens one{row, 1, {&new_ids[r], 1}};
      if (!scores.empty()) one.scores = scores[r];
      given.push_back(one);
    }
    host_.begin_step(given);
    std::vector<rebuilt_token> const back(host_.rebuilt().begin(), host_.rebuilt().end());
    auto const pool = static_cast<std::size_t>(rebuild_.pool());
    if (tier_) tier_->begin_step_async(nullptr, ledger_.view());
    std::vector<index_t> ids = new_ids;
    ids.resize(new_ids.size() + pool, -7);
    ids_.copy_from_async(ids, nullptr);
    if constexpr (scores_tokens<P>) {
      for (std::size_t row = 0; row < scores.size(); ++row) {
        gpu::check(cudaMemcpy(ledger_.view().past.priorities + row * longest,
                              scores[row].data(),
                              scores[row].size() * sizeof(float),
                              cudaMemcpyHostToDevice));
      }
      gpu::give_scores_async(nullptr,
                             ledger_.view(),
                             ledger_.policy(),
                             gpu::scores_view{ledger_.view().past.priorities, 1, longest},
                             false);
    }
    rebuild_.begin_step_async(nullptr, ledger_.view(), ledger_.policy(), rows_, ids_.data());
    ids = ids_.to_host(nullptr);
    auto const of = rebuild_.tokens();
    std::vector<index_t> back_rows(pool), back_positions(pool);
    copy(back_rows, of.rows);
    copy(back_positions, of.positions);

    // the device has the same tokens in some order: its tensors are the host's, moved about
    std::vector<std::size_t> source(ids.size(), 0);
    std::size_t computed = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i < new_ids.size()) {
        source[i] = i;
        continue;
      }
      std::size_t const e = i - new_ids.size();
      if (back_rows[e] < 0) {
        REQUIRE(ids[i] == 0);
        continue;
      }
      auto const same = std::find_if(back.begin(), back.end(), [&](rebuilt_token const& one) {
        return one.row == back_rows[e] && one.position == back_positions[e];
      });
      REQUIRE(same != back.end());
      REQUIRE(same->id == ids[i]);
      source[i] = new_ids.size() + static_cast<std::size_t>(same - back.begin());
      ++computed;
    }
    REQUIRE(computed == back.size());

    std::vector<deep_model::row> states;
    for (index_t const id : new_ids) states.push_back(model_.embedding(id));
    for (rebuilt_token const& one : back) states.push_back(model_.embedding(one.id));
    for (index_t layer = 0; layer < 2; ++layer) attend(layer, states, source);
    host_.end_step();
    rebuild_.end_step_async(nullptr, ledger_.view());
    gpu::decide_async(nullptr,
                      ledger_.view(),
                      ledger_.policy(),
                      0,
                      {.weights = weights_.data(), .advances = true});
    for (index_t row = 0; row < rows_; ++row) {
      CAPTURE(row);
      REQUIRE(ledger_.kept(nullptr, row) == host_.kept(row));
    }
  }
  rebuild_counts host_cost() const { return host_.rebuild_cost(); }
  rebuild_counts device_cost() const { return rebuild_.counts(nullptr); }
  float largest_difference() const { return largest_difference_; }

 private:
  static index_t slots(P const& policy, rebuild_options const& wanted) {
    return policy.budget() + 1 + wanted.count;
  }
  static cache_options options_of(rebuild_options const& wanted) {
    cache_options options;
    options.reach = scope::model;
    options.rebuild = wanted;
    return options;
  }
  template <class T>
  static void copy(std::vector<T>& to, T const* from) {
    gpu::check(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  }
  void attend(index_t layer,
              std::vector<deep_model::row>& states,
              std::vector<std::size_t> const& source) {
    auto const width = static_cast<std::size_t>(model_.width());
    std::vector<float> host[3], moved[3];
    for (index_t which = 0; which < 3; ++which) {
      for (auto const& state : states) {
        auto const row = model_.project(state, layer, which);
        host[which].insert(host[which].end(), row.begin(), row.end());
      }
      for (std::size_t const from : source) {
        auto const begin = host[which].begin() + static_cast<std::ptrdiff_t>(from * width);
        moved[which].insert(moved[which].end(), begin, begin + static_cast<std::ptrdiff_t>(width));
      }
    }
    auto const tokens = static_cast<index_t>(states.size());
    std::vector<float> out(host[0].size());
    host_.append(
        layer, {host[1].data(), tokens, 2, channels}, {host[2].data(), tokens, 2, channels});
    host_.attend(layer, {host[0].data(), tokens, 2, channels}, {out.data(), tokens, 2, channels});

    auto const all = static_cast<index_t>(source.size());
    gpu::device_buffer<float> const q{std::span<float const>(moved[0])};
    gpu::device_buffer<float> const k{std::span<float const>(moved[1])};
    gpu::device_buffer<float> const v{std::span<float const>(moved[2])};
    gpu::device_buffer<float> result(moved[0].size());
    result.fill_async(0, nullptr);
    auto const keys = store_.keys(layer);
    auto const values = store_.values(layer);
    if (tier_) {
      tier_->move_layer_async(nullptr, rebuild_.tokens(), longest, layer, keys, values);
    }
    std::size_t const behind = static_cast<std::size_t>(rows_) * width;
    if (rebuild_.pool() > 0)
      gpu::append_rebuilt_async(nullptr,
                                rebuild_.tokens(),
                                keys,
                                values,
                                {k.data() + behind, rebuild_.pool(), 2, channels},
                                {v.data() + behind, rebuild_.pool(), 2, channels});
    gpu::attend_args<float, kv_view<float>, gpu::rebuilt_queries> args{
        .q = {q.data(), all, 2, channels},
        .k = {k.data(), all, 2, channels},
        .v = {v.data(), all, 2, channels},
        .keys = keys,
        .values = values,
        .out = {result.data(), all, 2, channels}};
    args.layer = layer;
    args.rebuilt = rebuild_.queries();
    if constexpr (observes_attention<P>) {
      args.weights = weights_.data() + static_cast<std::size_t>(layer) * (weights_.size() / 2);
    }
    gpu::attend_async<channels, 8>(nullptr, args, ledger_.view(), ledger_.policy());
    auto const device_out = result.to_host(nullptr);
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (i >= static_cast<std::size_t>(rows_) && source[i] < static_cast<std::size_t>(rows_)) {
        continue;  // an unused row of the pool
      }
      for (std::size_t c = 0; c < width; ++c) {
        float const difference = std::abs(device_out[i * width + c] - out[source[i] * width + c]);
        largest_difference_ = std::max(largest_difference_, difference);
        REQUIRE(difference < 2e-5F);
      }
    }
    for (std::size_t i = 0; i < states.size(); ++i) {
      auto const begin = out.begin() + static_cast<std::ptrdiff_t>(i * width);
      states[i] = deep_model::add(
          states[i], deep_model::row(begin, begin + static_cast<std::ptrdiff_t>(width)));
    }
  }

  deep_model model_;
  index_t rows_;
  kv_cache<host_store<float>, P> host_;
  gpu::device_ledger<P> ledger_;
  gpu::device_store<float> store_;
  gpu::device_rebuild<P> rebuild_;
  std::optional<gpu::device_tier<float>> tier_;
  gpu::device_buffer<index_t> ids_;
  gpu::device_buffer<float> weights_;
  float largest_difference_ = 0.0F;
};

void compare(rebuild_options const& wanted, bool dynamic) {
  constexpr index_t rows = 3;
  both_sides<adaptive_release> sides({.keep = 6, .recent = 1, .sinks = 1}, rows, wanted);
  std::mt19937 random(3);
  std::vector<std::vector<float>> scores(rows);
  for (index_t n = 0; n < 24; ++n) {
    CAPTURE(n);
    std::vector<index_t> ids;
    for (auto& of_row : scores) {
      ids.push_back(static_cast<index_t>(random() % 50));
      of_row.push_back(0.0F);
      for (std::size_t i = dynamic ? 0 : of_row.size() - 1; i < of_row.size(); ++i) {
        of_row[i] = static_cast<float>(random() % 16);  // ties are frequent
      }
    }
    sides.step(ids, scores);
  }
  CHECK(sides.host_cost().computed == sides.device_cost().computed);
  CHECK(sides.host_cost().entered == sides.device_cost().entered);
  CHECK(sides.host_cost().deferred == sides.device_cost().deferred);
  CHECK(sides.host_cost().entered > 0);
  MESSAGE("largest difference of an output: " << sides.largest_difference());
}

TEST_CASE("the device rebuilds in every step as the host does, under each mask and admission") {
  for (auto const mask :
       {rebuild_mask::position_causal, rebuild_mask::row_causal, rebuild_mask::none}) {
    for (auto const admit : {rebuild_admission::never, rebuild_admission::compete}) {
      CAPTURE(std::string(word_of(mask)));
      CAPTURE(std::string(word_of(admit)));
      rebuild_options wanted;
      wanted.count = 3;
      wanted.mask = mask;
      wanted.admit = admit;
      compare(wanted, true);
    }
  }
  rebuild_options wanted;
  wanted.count = 10;  // several passes over K and V
  compare(wanted, false);
}

TEST_CASE("tokens that enter share the pool as on the host, and stay") {
  for (index_t const pool : {1, 2, 30}) {
    CAPTURE(pool);
    rebuild_options wanted;
    wanted.count = 3;
    wanted.schedule = on_entry{pool};
    compare(wanted, true);
    compare(wanted, false);
    wanted.mask = rebuild_mask::row_causal;
    compare(wanted, true);
  }
}

TEST_CASE("restored tokens have the K and V of their release, as on the host") {
  rebuild_options wanted;
  wanted.count = 3;
  wanted.schedule = restore{};
  compare(wanted, true);
  wanted.admit = rebuild_admission::compete;
  compare(wanted, true);
}

TEST_CASE("a tier that is full loses the oldest release") {
  // room for two tokens of the only row: the host's limit counts tokens in the same way
  constexpr std::size_t of_token = std::size_t{2} * 2 * 2 * channels * sizeof(float);
  rebuild_options wanted;
  wanted.count = 2;
  wanted.schedule = restore{2 * of_token};
  both_sides<adaptive_release> sides({.keep = 4, .recent = 1, .sinks = 0}, 1, wanted);
  std::mt19937 random(9);
  std::vector<std::vector<float>> scores(1);
  for (index_t n = 0; n < 24; ++n) {
    CAPTURE(n);
    scores[0].push_back(0.0F);
    for (float& score : scores[0]) score = static_cast<float>(random() % 16);
    sides.step({static_cast<index_t>(random() % 50)}, scores);
  }
  CHECK(sides.host_cost().entered == sides.device_cost().entered);
}

TEST_CASE("tokens that are rebuilt every few steps stay in between as on the host") {
  rebuild_options wanted;
  wanted.count = 3;
  for (index_t const steps : {4, 1}) {
    CAPTURE(steps);
    wanted.schedule = every{steps};
    compare(wanted, true);
  }
}

TEST_CASE("the released tokens of H2O come back by their frozen scores as on the host") {
  rebuild_options wanted;
  wanted.count = 2;
  both_sides<h2o> sides({.heavy = 3, .recent = 3}, 2, wanted);
  std::mt19937 random(4);
  for (index_t n = 0; n < 24; ++n) {
    CAPTURE(n);
    sides.step({static_cast<index_t>(random() % 50), static_cast<index_t>(random() % 50)}, {});
  }
  CHECK(sides.device_cost().computed == sides.host_cost().computed);
}

TEST_CASE("what runs on the host only is refused") {
  auto const refused = [](rebuild_options wanted, std::string const& part) {
    wanted.count = 2;
    gpu::device_ledger<h2o> const ledger(
        {.heavy = 3, .recent = 3}, {1, 1, 1, 9, 64}, scope::model, 1, 0, 2, 8);
    std::string said;
    try {
      gpu::device_rebuild<h2o> const one(wanted, ledger.view());
    } catch (std::invalid_argument const& error) {
      said = error.what();
    }
    CHECK(said.find(part) != std::string::npos);
  };
  rebuild_options wanted;
  wanted.admit = rebuild_admission::compete;
  refused(wanted, "compete on the host only");
  wanted.admit = rebuild_admission::never;
  wanted.score = rebuilt_score::accumulate;
  refused(wanted, "accumulate");
}

TEST_CASE("under a policy that releases blocks tokens do not come back") {
  using blocks = in_blocks<h2o>;
  gpu::device_ledger<blocks> const ledger(
      {{}, {.heavy = 4, .recent = 2}, 2}, {1, 1, 1, 9, 64}, scope::model, 1, 0, 2, 8);
  rebuild_options wanted;
  wanted.count = 2;
  CHECK_THROWS_WITH_AS(gpu::device_rebuild<blocks>(wanted, ledger.view()),
                       doctest::Contains("releases blocks"),
                       std::invalid_argument);
}

TEST_CASE("a tier made for another ledger is refused") {
  constexpr kv_shape shape{2, 1, 1, 9, 64};
  gpu::device_ledger<h2o> const ledger({.heavy = 3, .recent = 3}, shape, scope::model, 1, 0, 2, 16);
  gpu::device_tier<float> tier(shape, 8, std::size_t{1} << 20U);
  CHECK_THROWS_WITH_AS(tier.begin_step_async(nullptr, ledger.view()),
                       doctest::Contains("of 8 tokens, the ledger remembers 2 of 16"),
                       std::logic_error);
}

}  // namespace
