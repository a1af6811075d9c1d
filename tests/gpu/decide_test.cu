// SPDX-License-Identifier: Apache-2.0
// The decision of every policy in every scope, on the device and on the host, from the same
// weights.
#include "support/decision_case.cuh"
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decision_stages.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/policies/adaptors/decayed.hpp>
#include <adore/policies/adaptors/delayed.hpp>
#include <adore/policies/adaptors/in_blocks.hpp>
#include <adore/policies/adaptors/newest_of_equals_first.hpp>
#include <adore/policies/adaptors/with_protection.hpp>
#include <adore/policies/every_policy.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace adore::testing {
namespace {

TEST_CASE("the device keeps what the host keeps: sliding_window") {
  check_everywhere(sliding_window{.size = 30});
}
TEST_CASE("the device keeps what the host keeps: streaming_llm") {
  check_everywhere(streaming_llm{.sinks = 4, .window = 20});
}
TEST_CASE("the device keeps what the host keeps: strided") {
  check_everywhere(strided{.interval = 3,
                           .window = 8,
                           .phase = 1,
                           .bound = stride_bound::drop_oldest_grid,
                           .limit = 20});
}
TEST_CASE("the device keeps what the host keeps: strided_doubling") {
  check_everywhere(strided_doubling{.interval = 2, .window = 6, .limit = 20});
}
TEST_CASE("the device keeps what the host keeps: h2o") {
  check_everywhere(h2o{.heavy = 10, .recent = 10});
  check_everywhere(h2o{.heavy = 20, .recent = 0});
}
TEST_CASE("the device keeps what the host keeps: decayed_h2o") {
  check_everywhere(decayed_h2o{.heavy = 15, .recent = 5, .factor = 0.5F});
  check_everywhere(decayed_h2o{.heavy = 15, .recent = 5, .factor = 0.97F}, false);
}
TEST_CASE("the device keeps what the host keeps: h2o_per_age") {
  check_everywhere(h2o_per_age{.heavy = 10, .recent = 10}, false);
}
TEST_CASE("the device keeps what the host keeps: h2o_algorithm_1") {
  check_everywhere(h2o_algorithm_1{.size = 20});
}
TEST_CASE("the device keeps what the host keeps: tova") {
  check_everywhere(tova{.size = 20});
  check_everywhere(tova{.size = 20, .protect_newest = true});
}
TEST_CASE("the device keeps what the host keeps: key_norm") {
  check_everywhere(key_norm{.size = 20, .recent = 3});
}
TEST_CASE("the device keeps what the host keeps: random_reservoir") {
  check_everywhere(random_reservoir{.size = 20});
}
TEST_CASE("the device keeps what the host keeps: random_victim") {
  check_everywhere(random_victim{.size = 20});
}

TEST_CASE("the device keeps what the host keeps: adaptive_release") {
  check_everywhere(adaptive_release{.keep = 20, .recent = 5, .sinks = 2});
}
TEST_CASE("the device keeps what the host keeps: attentive_release") {
  check_everywhere(attentive_release{.keep = 20, .recent = 5, .sinks = 2, .factor = 0.5F}, false);
}
TEST_CASE("the device keeps what the host keeps: a delay, fading scores, protected tokens") {
  check_everywhere(delayed<h2o>{{}, {.heavy = 15, .recent = 5}, 8, false});
  check_everywhere(decayed<h2o>{{}, {.heavy = 15, .recent = 5}, 0.5F});
  check_everywhere(with_protection<tova>{{}, {.size = 20}, 2, 6});
}

TEST_CASE("the device keeps what the host keeps: sparse_transformer, dynamic_top_k") {
  check_everywhere(sparse_transformer{});
  check_everywhere(dynamic_top_k{.count = 5});
}
TEST_CASE("the device keeps what the host keeps: sentinel") {
  check_everywhere(sentinel{.open = 1, .close = 2});
  check_everywhere(sentinel{.open = 1, .close = 2, .tail = 7});
}
TEST_CASE("the device marks what the host marks: h2o_mask_simulation") {
  check_everywhere(h2o_mask_simulation{.heavy = 10, .recent = 6});
  check_everywhere(h2o_mask_simulation{.heavy = 0, .recent = 1});
}
TEST_CASE("the device keeps what the host keeps: whole blocks") {
  auto const check_blocks = [](auto const& policy) {
    check_everywhere(policy, /*exact=*/true, /*steps=*/78);
  };
  SUBCASE("h2o, 4") {
    check_blocks(in_blocks<h2o>{{}, {.heavy = 20, .recent = 10}, 4});
  }
  SUBCASE("h2o, 1") {
    check_blocks(in_blocks<h2o>{{}, {.heavy = 20, .recent = 0}, 1});
  }
  SUBCASE("sliding_window, 7") {
    check_blocks(in_blocks<sliding_window>{{}, {.size = 30}, 7});
  }
  SUBCASE("random_victim, 3") {
    check_blocks(in_blocks<random_victim>{{}, {.size = 21}, 3});
  }
  SUBCASE("strided, 2") {
    check_blocks(in_blocks<strided>{{}, {.interval = 4, .window = 2}, 2});
  }
}
TEST_CASE("the device keeps what the host keeps: whole blocks within other adaptors") {
  // blocks of equal rank are many: all weights are those of the last query
  check_everywhere(in_blocks<newest_of_equals_first<tova>>{{}, {{}, {.size = 20}}, 4});
  check_everywhere(with_protection<in_blocks<h2o>>{{}, {{}, {.heavy = 30, .recent = 0}, 5}, 3, 6});
}
TEST_CASE("blocks larger than what is not protected: the rest goes token by token") {
  check_everywhere(in_blocks<h2o>{{}, {.heavy = 4, .recent = 12}, 16});
}

TEST_CASE("lanes of thousands of slots are decided on by several blocks, and the same is kept") {
  auto const check_long = [](auto const& policy, decide_case c) {
    c.max_new = 16;  // lanes fill soon
    CAPTURE(word_of(c.reach));
    auto const agrees = run_both(policy, c);
    CHECK(agrees.lanes > 0);
    CHECK(agrees.differences == 0);
    CHECK(agrees.other_states == 0);
  };
  auto const check_two_blocks = [&](auto const& policy) {
    check_long(policy, {.reach = scope::layer, .steps = 190, .budget = 1300});
    check_long(policy, {.reach = scope::model, .steps = 190, .budget = 1300});
  };
  SUBCASE("four blocks") {
    check_long(h2o{.heavy = 1500, .recent = 800},
               {.reach = scope::layer, .steps = 330, .budget = 2500});
  }
  SUBCASE("h2o") {
    check_two_blocks(h2o{.heavy = 700, .recent = 500});
  }
  SUBCASE("sliding_window") {
    check_two_blocks(sliding_window{.size = 1250});
  }
  // a full lane's step is dear here: fewer of them
  in_blocks<h2o> const whole{{}, {.heavy = 600, .recent = 400}, 8};
  SUBCASE("in_blocks, layer") {
    check_long(whole, {.reach = scope::layer, .steps = 150, .budget = 1020});
  }
  SUBCASE("in_blocks, model") {
    check_long(whole, {.reach = scope::model, .steps = 150, .budget = 1020});
  }
  SUBCASE("h2o_mask_simulation") {
    check_two_blocks(h2o_mask_simulation{.heavy = 700, .recent = 100});
  }
}

TEST_CASE("observation, selection and release one by one keep what one decision keeps") {
  auto const check_stages = [](auto const& policy) {
    for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
      CAPTURE(word_of(reach));
      auto const agrees = run_both(policy,
                                   {.reach = reach,
                                    .max_new = 6,
                                    .salt = 5,
                                    .drafts = true,
                                    .steps = 78,
                                    .by_stages = true});
      CHECK(agrees.lanes > 0);
      CHECK(agrees.differences == 0);
      CHECK(agrees.other_states == 0);
    }
  };
  SUBCASE("h2o") {
    check_stages(h2o{.heavy = 10, .recent = 10});
  }
  SUBCASE("sliding_window") {
    check_stages(sliding_window{.size = 30});
  }
  SUBCASE("key_norm") {
    check_stages(key_norm{.size = 20, .recent = 3});
  }
  SUBCASE("strided_doubling") {
    check_stages(strided_doubling{.interval = 2, .window = 6, .limit = 20});
  }
  SUBCASE("h2o_mask_simulation") {
    check_stages(h2o_mask_simulation{.heavy = 10, .recent = 6});
  }
  SUBCASE("in_blocks") {
    check_stages(in_blocks<h2o>{{}, {.heavy = 20, .recent = 10}, 4});
  }
  SUBCASE("in_blocks, several blocks share a lane") {
    auto const agrees = run_both(
        in_blocks<h2o>{{}, {.heavy = 600, .recent = 400}, 8},
        {.reach = scope::layer, .max_new = 16, .steps = 150, .budget = 1020, .by_stages = true});
    CHECK(agrees.lanes > 0);
    CHECK(agrees.differences == 0);
  }
}

TEST_CASE("steps that the policy does not observe leave its scores as they are") {
  auto const check_unobserved = [](auto const& policy, scope reach, bool by_stages) {
    auto const agrees = run_both(
        policy, {.reach = reach, .max_new = 2, .by_stages = by_stages, .observed_every = 3});
    CHECK(agrees.lanes > 0);
    CHECK(agrees.differences == 0);
  };
  for (bool const by_stages : {false, true}) {
    check_unobserved(h2o{.heavy = 10, .recent = 10}, scope::kv_head, by_stages);
    check_unobserved(
        decayed_h2o{.heavy = 15, .recent = 5, .factor = 0.5F}, scope::layer, by_stages);
    check_unobserved(tova{.size = 20}, scope::model, by_stages);
  }
}

TEST_CASE("victims are listed before they go, and others can go instead") {
  sliding_window const policy{.size = 3};
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 2, 5, 64}, scope::kv_head);
  books.open_async(nullptr, 0);
  for (int i = 0; i < 3; ++i) {
    gpu::decide_async(nullptr, books.view(), policy, 0, {});
    gpu::advance_async(nullptr, books.view());
  }
  gpu::device_buffer<gpu::departure> tokens(2);  // one per lane
  gpu::device_buffer<index_t> counts(2);
  gpu::victims_view const victims{tokens.data(), counts.data(), 1};
  auto const before = books.snapshot(nullptr, 0);
  gpu::select_async(nullptr, books.view(), policy, 0, {}, victims);
  CHECK(books.snapshot(nullptr, 0).positions == before.positions);
  CHECK(counts.to_host(nullptr) == std::vector<index_t>{1, 1});
  auto named = tokens.to_host(nullptr);
  CHECK(named[0].position == 0);
  CHECK(named[1].position == 0);
  // in the second lane the engine lets the next one go
  auto const at = [&](position_t p) {
    auto const lane = before.positions.begin() + 5;
    return static_cast<index_t>(std::find(lane, lane + 5, p) - lane);
  };
  named[1] = {1, at(1)};
  tokens.copy_from_async(named, nullptr);
  gpu::release_async(nullptr, books.view(), policy, 0, {}, victims);
  gpu::advance_async(nullptr, books.view());
  CHECK(books.kept(nullptr, 0) == std::vector<position_t>{1, 2, 3});
  CHECK(books.kept(nullptr, 1) == std::vector<position_t>{0, 2, 3});
  gpu::decide_async(nullptr, books.view(), policy, 0, {});  // the ledger goes on as ever
  gpu::advance_async(nullptr, books.view());
  CHECK(books.kept(nullptr, 1) == std::vector<position_t>{2, 3, 4});
  CHECK(books.tokens_without_room(nullptr) == 0);
}

TEST_CASE("where victims are more than the list holds, the rest stays for a step") {
  sliding_window const policy{.size = 8};
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 1, 12, 64}, scope::kv_head);
  books.open_async(nullptr, 0);
  for (int i = 0; i < 8; ++i) {
    gpu::decide_async(nullptr, books.view(), policy, 0, {});
    gpu::advance_async(nullptr, books.view());
  }
  auto saved = books.snapshot(nullptr, 0);
  saved.budgets = {4};
  books.restore(nullptr, 0, saved);
  gpu::device_buffer<gpu::departure> tokens(3);
  gpu::device_buffer<index_t> counts(1);
  gpu::victims_view const victims{tokens.data(), counts.data(), 3};
  std::vector<std::vector<position_t>> kept;
  for (int i = 0; i < 2; ++i) {
    gpu::observe_async(nullptr, books.view(), policy, 0, {});
    gpu::select_async(nullptr, books.view(), policy, 0, {}, victims);
    gpu::release_async(nullptr, books.view(), policy, 0, {}, victims);
    gpu::advance_async(nullptr, books.view());
    kept.push_back(books.kept(nullptr, 0));
  }
  CHECK(kept[0] == std::vector<position_t>{3, 4, 5, 6, 7, 8});
  CHECK(kept[1] == std::vector<position_t>{6, 7, 8, 9});
  gpu::victims_view const nowhere{};
  CHECK_THROWS_WITH_AS(gpu::select_async(nullptr, books.view(), policy, 0, {}, nowhere),
                       doctest::Contains("victims must have counts"),
                       std::logic_error);
}

TEST_CASE("a smaller budget is reached by the next decision, protected tokens last") {
  h2o const policy{.heavy = 6, .recent = 10};
  gpu::device_ledger<h2o> books(policy, {1, 1, 1, 40, 64}, scope::kv_head);
  row_snapshot saved{.reach = scope::kv_head, .next = 20};
  for (position_t p = 0; p < 40; ++p) saved.positions.push_back(p < 16 ? p + 4 : no_position);
  saved.rotary = saved.positions;
  saved.budgets = {5};
  std::vector<h2o::slot_state> states(40, {1.0F});
  auto const* const bytes = reinterpret_cast<std::byte const*>(states.data());
  saved.slot_states.assign(bytes, bytes + states.size() * sizeof(h2o::slot_state));
  books.restore(nullptr, 0, saved);
  gpu::device_buffer<float> weights(static_cast<std::size_t>(books.view().stride));
  weights.fill_async(0, nullptr);
  gpu::decide_async(nullptr, books.view(), policy, 0, {.weights = weights.data()});
  gpu::advance_async(nullptr, books.view());
  // of 4..20 the seven that are not recent go, and then the five oldest of the recent ones
  CHECK(books.kept(nullptr, 0) == std::vector<position_t>{16, 17, 18, 19, 20});
}

TEST_CASE("rows without a sequence have no new tokens, whatever is asked for") {
  sliding_window const policy{.size = 4};
  gpu::device_ledger<sliding_window> books(policy, {3, 2, 2, 8, 64}, scope::kv_head, 2);
  auto const counts = [&] {
    std::vector<gpu::row_books> rows(3);
    gpu::check(cudaMemcpy(rows.data(),
                          books.view().rows,
                          rows.size() * sizeof(gpu::row_books),
                          cudaMemcpyDeviceToHost));
    return std::vector<index_t>{rows[0].count, rows[1].count, rows[2].count};
  };
  books.open_async(nullptr, 0);
  books.open_async(nullptr, 1);
  books.close_async(nullptr, 1);
  books.set_counts(nullptr, std::vector<index_t>{2, 2, 2});
  CHECK(counts() == std::vector<index_t>{2, 0, 0});
  books.open_async(nullptr, 2);
  gpu::device_buffer<index_t> const asked(std::vector<index_t>{-3, 1, 9});
  books.set_counts_async(nullptr, asked.data());
  CHECK(counts() == std::vector<index_t>{0, 0, 2});
  CHECK_THROWS_WITH_AS(books.set_counts(nullptr, std::vector<index_t>{1, 1}),
                       doctest::Contains("2 counts, the ledger has 3 rows"),
                       std::invalid_argument);
  CHECK_THROWS_AS(books.set_counts(nullptr, std::vector<index_t>{1, 3, 1}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      books.kept(nullptr, 12), doctest::Contains("no such lane"), std::invalid_argument);
  CHECK_THROWS_AS(books.released_since(nullptr, 0), std::logic_error);  // there is no ring
}

TEST_CASE("a lane of the device's books spans what the host's spans") {
  kv_shape const shape{3, 4, 2, 8, 64};
  for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
    gpu::device_ledger<sliding_window> const device({.size = 4}, shape, reach);
    ledger<sliding_window> const host({.size = 4}, shape, reach, 1);
    for (index_t lane = 0; lane < 3 * host.lanes_per_row(); ++lane) {
      lane_extent const here = device.view().extent_of(lane), there = host.extent_of(lane);
      CHECK(here.first_layer == there.first_layer);
      CHECK(here.end_layer == there.end_layer);
      CHECK(here.first_head == there.first_head);
      CHECK(here.end_head == there.end_head);
    }
  }
}

TEST_CASE("the ring is read on another stream while steps run") {
  sliding_window const policy{.size = 1};
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 64, 4, 64}, scope::kv_head, 1, 1 << 16);
  cudaStream_t steps = nullptr, reader = nullptr;
  gpu::check(cudaStreamCreateWithFlags(&steps, cudaStreamNonBlocking));
  gpu::check(cudaStreamCreateWithFlags(&reader, cudaStreamNonBlocking));
  books.open_async(steps, 0);
  constexpr int count = 500;
  for (int i = 0; i < count; ++i) {
    gpu::decide_async(steps, books.view(), policy, 0, {});
    gpu::advance_async(steps, books.view());
  }
  std::vector<gpu::released_entry> all;
  for (bool running = true; running;) {
    running = cudaStreamQuery(steps) == cudaErrorNotReady;
    if (running) cudaGetLastError();  // it is no error
    for (auto const& entry : books.released_since(reader, all.size())) all.push_back(entry);
  }
  std::vector<index_t> of_lane(64, 0);
  int wrong = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    wrong += all[i].number == i + 1 ? 0 : 1;
    // a lane's tokens leave in their order, each in the step of the next
    wrong += all[i].position == of_lane[static_cast<std::size_t>(all[i].lane)]++ ? 0 : 1;
    wrong += all[i].newest == all[i].position + 1 ? 0 : 1;
  }
  CHECK(wrong == 0);
  CHECK(all.size() == std::size_t{count - 1} * 64);
  CHECK_THROWS_AS(books.released_since(reader, all.size() + 1), std::invalid_argument);
  gpu::check(cudaStreamSynchronize(steps));
  gpu::check(cudaStreamDestroy(steps));
  gpu::check(cudaStreamDestroy(reader));
}

TEST_CASE("a ring that was overrun says so") {
  sliding_window const policy{.size = 1};
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 1, 4, 64}, scope::kv_head, 1, 4);
  books.open_async(nullptr, 0);
  for (int i = 0; i < 5; ++i) {
    gpu::decide_async(nullptr, books.view(), policy, 0, {});
    gpu::advance_async(nullptr, books.view());
  }
  auto const entries = books.released_since(nullptr, 0);
  REQUIRE(entries.size() == 4);
  CHECK(entries[3].position == 3);
  CHECK(entries[3].newest == 4);
  gpu::decide_async(nullptr, books.view(), policy, 0, {});
  gpu::advance_async(nullptr, books.view());
  CHECK_THROWS_AS(books.released_since(nullptr, 0), std::runtime_error);
  CHECK(books.released_since(nullptr, 1).size() == 4);
}

TEST_CASE("a ledger that could not hold its steps is refused") {
  sliding_window const policy{.size = 4};
  auto const made = [&](index_t slots, index_t max_new, index_t guests) {
    gpu::device_ledger<sliding_window> const books(
        policy, {1, 1, 1, slots, 64}, scope::model, max_new, 0, guests);
  };
  CHECK_THROWS_WITH_AS(made(40, 17, 0), doctest::Contains("[1, 16]"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      made(8, 4, 1), doctest::Contains("8 slots, less max_new = 4"), std::invalid_argument);
  using unbound = gpu::device_ledger<strided>;
  CHECK_THROWS_WITH_AS(unbound({}, {1, 1, 1, 8, 64}, scope::model, 1, 0, 8),
                       doctest::Contains("guests"),
                       std::invalid_argument);
}

TEST_CASE("a snapshot that contradicts itself or outgrows the lanes is refused") {
  sliding_window const policy{.size = 4};
  gpu::device_ledger<sliding_window> books(policy, {1, 1, 1, 8, 64}, scope::kv_head, 2);
  row_snapshot saved{.reach = scope::kv_head, .next = 3, .budgets = {4}};
  saved.positions = {0, 1, 2, -1, -1, -1, -1, -1};
  saved.rotary = saved.positions;
  CHECK_NOTHROW(books.restore(nullptr, 0, saved));
  row_snapshot twice = saved;
  twice.positions[3] = 1;
  CHECK_THROWS_AS(books.restore(nullptr, 0, twice), std::invalid_argument);
  saved.budgets = {7};
  CHECK_THROWS_WITH_AS(books.restore(nullptr, 0, saved),
                       doctest::Contains("a lane has room for 6"),
                       std::invalid_argument);
}

TEST_CASE("without rows nothing is launched") {
  h2o const policy{.heavy = 1, .recent = 1};
  gpu::device_ledger<h2o> const books(policy, {1, 1, 1, 4, 64}, scope::kv_head);
  auto none = books.view();
  none.row_count = 0;
  gpu::device_buffer<float> weights(64);
  CHECK_NOTHROW(gpu::decide_async(nullptr, none, policy, 0, {.weights = weights.data()}));
  CHECK_NOTHROW(gpu::advance_async(nullptr, none));
  gpu::check(cudaDeviceSynchronize());
}

TEST_CASE("a policy that lacks what a decision needs is refused") {
  h2o const policy{.heavy = 1, .recent = 1};
  gpu::device_ledger<h2o> books(policy, {1, 1, 1, 4, 64}, scope::kv_head);
  CHECK_THROWS_AS(gpu::decide_async(nullptr, books.view(), policy, 0, {}), std::logic_error);
  gpu::device_buffer<float> weights(64);
  CHECK_THROWS_WITH_AS(
      gpu::decide_async(nullptr, books.view(), policy, 1, {.weights = weights.data()}),
      doctest::Contains("layer 1"),
      std::logic_error);
  CHECK_THROWS_WITH_AS(
      gpu::decide_async(nullptr, books.view(), policy, 0, {.weights = weights.data() + 1}),
      doctest::Contains("16 bytes"),
      std::logic_error);
}

}  // namespace
}  // namespace adore::testing
