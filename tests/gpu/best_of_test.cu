// SPDX-License-Identifier: Apache-2.0
// The best m of n tokens of a prompt: on the device what `adore::select` keeps on the host.
#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/rank.hpp"
#include "adore/eviction/select.hpp"
#include "adore/gpu/best_of.cuh"
#include "adore/order_key.hpp"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

/// Ranks by a number that the test writes into the state.
template <bool NewestFirst>
struct by_given_priority {
  index_t size = 0, first = 0, newest = 0;
  static constexpr scope default_scope = scope::kv_head;
  static constexpr bool newest_first = NewestFirst;
  struct slot_state {
    float priority = 0.0F;
  };
  ADORE_HOST_DEVICE constexpr index_t budget() const { return size; }
  ADORE_HOST_DEVICE constexpr index_t protected_first(lane_view) const { return first; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view) const { return newest; }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view, lane_view, slot_state const& s) const {
    return s.priority;
  }
  constexpr void validate() const {}
};

namespace {

template <bool NewestFirst>
std::vector<position_t> kept_on_host(std::vector<float> const& priorities,
                                     index_t m,
                                     index_t first,
                                     index_t newest) {
  using policy = by_given_priority<NewestFirst>;
  auto const n = static_cast<index_t>(priorities.size());
  std::vector<position_t> positions, rotary;
  std::vector<typename policy::slot_state> states;
  for (index_t i = 0; i < n; ++i) {
    positions.push_back(i);
    rotary.push_back(i);
    states.push_back({priorities[static_cast<std::size_t>(i)]});
  }
  no_state lane_state;
  lane_slots<policy> const slots{n, positions.data(), rotary.data(), states.data(), &lane_state};
  policy const rule{m, first, newest};
  lane_view view{n - 1, n, m, 0, 0, 0};
  std::vector<victim> victims;
  if (n > 0) select(rule, slots, view, rank(rule, slots, view, candidates_of(rule, view)), victims);
  std::erase(positions, no_position);
  return positions;
}

struct selection {
  index_t n, m, first = 0, newest = 0;
};

using numbers = std::function<float(std::mt19937&)>;

/// One lane per selection, in one launch; n and m differ from lane to lane.
void check_lanes(std::vector<selection> const& lanes,
                 numbers const& draw,
                 bool newest_first = false,
                 index_t misalignment = 0) {
  test_stream const stream;
  std::mt19937 random(31);
  index_t most = 0, most_kept = 1;
  std::vector<index_t> n, m;
  for (selection const& lane : lanes) {
    most = std::max(most, lane.n);
    most_kept = std::max(most_kept, std::min(lane.m, lane.n));
    n.push_back(lane.n);
    m.push_back(lane.m);
  }
  index_t const stride = (most + 3) / 4 * 4 + misalignment;
  auto const count = static_cast<index_t>(lanes.size());
  // behind a lane's tokens lies what would win if it were looked at
  std::vector<float> all(static_cast<std::size_t>(count * stride),
                         std::numeric_limits<float>::infinity());
  std::vector<std::vector<float>> each;
  for (index_t lane = 0; lane < count; ++lane) {
    std::vector<float> own(static_cast<std::size_t>(lanes[static_cast<std::size_t>(lane)].n));
    for (float& x : own) x = draw(random);
    std::copy(own.begin(), own.end(), all.begin() + lane * stride);
    each.push_back(own);
  }
  device_tensor<float> priorities(all);
  device_tensor<index_t> tokens(n), keep(m);
  index_t const kept_stride = most_kept + 3;
  device_tensor<position_t> kept(
      std::vector<position_t>(static_cast<std::size_t>(count * kept_stride), -7));
  device_tensor<index_t> counts(std::vector<index_t>(lanes.size(), -7));
  gpu::best_of_args args;
  args.priorities = priorities.data();
  args.stride = stride;
  args.lanes = count;
  args.most = most;
  args.tokens.each = tokens.data();
  args.keep.each = keep.data();
  args.first = lanes.front().first;
  args.newest = lanes.front().newest;
  args.newest_first = newest_first;
  args.kept = kept.data();
  args.kept_stride = kept_stride;
  args.counts = counts.data();
  gpu::best_of_async(stream, args);
  kept.fetch(stream);
  counts.fetch(stream);
  for (index_t lane = 0; lane < count; ++lane) {
    auto const i = static_cast<std::size_t>(lane);
    CAPTURE(lanes[i].n);
    CAPTURE(lanes[i].m);
    auto const expected = newest_first
                              ? kept_on_host<true>(each[i], lanes[i].m, args.first, args.newest)
                              : kept_on_host<false>(each[i], lanes[i].m, args.first, args.newest);
    CHECK(counts.host[i] == static_cast<index_t>(expected.size()));
    auto const begin = kept.host.begin() + lane * kept_stride;
    CHECK(std::vector<position_t>(begin, begin + std::ssize(expected)) == expected);
    CHECK(std::all_of(
        begin + std::ssize(expected), begin + kept_stride, [](position_t p) { return p == -7; }));
  }
}

float normal(std::mt19937& random) {
  return std::normal_distribution<float>()(random);
}
/// Weights of attention: many sizes, none negative.
float weight(std::mt19937& random) {
  return std::exp(4.0F * normal(random));
}
/// Five different numbers, so that nearly all tokens are equals of the threshold.
float tied(std::mt19937& random) {
  return static_cast<float>(random() % 5) - 2.0F;
}
float odd(std::mt19937& random) {
  switch (random() % 8) {
    case 0:
      return std::numeric_limits<float>::quiet_NaN();
    case 1:
      return -std::numeric_limits<float>::quiet_NaN();
    case 2:
      return -0.0F;
    case 3:
      return 0.0F;
    case 4:
      return std::numeric_limits<float>::infinity();
    case 5:
      return std::numeric_limits<float>::denorm_min();
    default:
      return normal(random);
  }
}
float sometimes_never(std::mt19937& random) {
  return random() % 3 == 0 ? keep_never : normal(random);
}

std::vector<selection> several(index_t first, index_t newest) {
  std::vector<selection> lanes;
  for (index_t const n : {300, 0, 1, 5, 127, 128, 129, 513, 1025}) {
    for (index_t const m : {0, 1, 7, 64, 128, 2000}) lanes.push_back({n, m, first, newest});
  }
  return lanes;
}

}  // namespace

TEST_CASE("the device keeps the best of a prompt, as the host does") {
  for (auto const& draw : {numbers(normal), numbers(weight), numbers(tied), numbers(odd)}) {
    check_lanes(several(0, 0), draw);
    check_lanes(several(4, 30), draw);
    check_lanes(several(40, 100), draw);
  }
}

TEST_CASE("tokens that are never kept go even where there is room") {
  check_lanes(several(0, 0), sometimes_never);
  check_lanes(several(2, 9), sometimes_never);
  check_lanes(several(0, 0), [](std::mt19937&) { return keep_never; });
  check_lanes(several(3, 3), [](std::mt19937& random) {
    return random() % 2 == 0 ? keep_never : std::numeric_limits<float>::quiet_NaN();
  });
}

TEST_CASE("of equals the newest stay, or the oldest if the policy says so") {
  auto const equal = [](std::mt19937&) { return 1.0F; };
  check_lanes({{1000, 10}}, equal);
  check_lanes({{1000, 10}}, equal, true);
  check_lanes(several(4, 30), tied, true);
}

TEST_CASE("lanes that do not begin at 16 bytes are read, too") {
  check_lanes(several(1, 2), normal, false, 1);
}

TEST_CASE("lanes of thousands of tokens, in shared memory and beyond it") {
  check_lanes({{8192, 192}, {8191, 192}, {4097, 4096}, {10, 20}}, weight);
  check_lanes({{20000, 300, 4, 100}, {16500, 16499, 4, 100}}, weight);
  check_lanes({{60001, 1000, 4, 64}, {49153, 3, 4, 64}}, normal);
  check_lanes({{60000, 30000}}, tied);
}

TEST_CASE("a lane's result is the same alone and among others") {
  test_stream const stream;
  std::mt19937 random(2);
  constexpr index_t n = 700, m = 50, lanes = 5;
  std::vector<float> all(lanes * n);
  for (float& x : all) x = tied(random);
  device_tensor<float> priorities(all);
  std::vector<position_t> const unset(lanes * m, -7);
  device_tensor<position_t> together(unset), alone(unset);
  device_tensor<index_t> counts(unset);
  gpu::best_of_args args;
  args.priorities = priorities.data();
  args.stride = args.most = args.tokens.all = n;
  args.lanes = lanes;
  args.keep.all = m;
  args.kept = together.data();
  args.kept_stride = m;
  args.counts = counts.data();
  gpu::best_of_async(stream, args);
  args.priorities += 3 * n;
  args.lanes = 1;
  args.kept = alone.data();
  gpu::best_of_async(stream, args);
  together.fetch(stream);
  alone.fetch(stream);
  CHECK(alone.host.front() >= 0);
  CHECK(std::equal(alone.host.begin(), alone.host.begin() + m, together.host.begin() + 3 * m));
}

TEST_CASE("the keys of candidates order as order_key does, between none and protected ones") {
  std::mt19937 random(3);
  gpu::prompt_split const split(100, 50, 4, 10);
  std::vector<float> all{keep_never, std::numeric_limits<float>::infinity(), -0.0F, 0.0F};
  for (int i = 0; i < 200; ++i) all.push_back(odd(random));
  for (float const a : all) {
    CHECK(split.key(a, 50) > gpu::key_of_no_token);
    CHECK(split.key(a, 50) < gpu::key_of_protected);
    for (float const b : all) {
      CHECK((split.key(a, 50) < split.key(b, 50)) == (order_key(a, 7) < order_key(b, 7)));
    }
  }
  CHECK(split.key(keep_never, 50) == gpu::key_of_keep_never);
  CHECK(split.key(1.0F, 3) == gpu::key_of_protected);
  CHECK(split.key(1.0F, 4) != gpu::key_of_protected);
  CHECK(split.key(1.0F, 89) != gpu::key_of_protected);
  CHECK(split.key(1.0F, 90) == gpu::key_of_protected);
  CHECK(split.key(1.0F, 100) == gpu::key_of_no_token);
}

TEST_CASE("best_of refuses impossible numbers") {
  test_stream const stream;
  gpu::best_of_args args;
  args.lanes = 1;
  args.stride = 10;
  args.most = 11;
  CHECK_THROWS_AS(gpu::best_of_async(stream, args), std::invalid_argument);
  args.most = 10;
  args.first = -1;
  CHECK_THROWS_AS(gpu::best_of_async(stream, args), std::invalid_argument);
  args.first = 0;
  args.lanes = 2;
  args.tokens.all = 10;
  args.keep.all = 4;
  args.kept_stride = 4;
  CHECK_THROWS_WITH_AS(gpu::best_of_async(stream, args),
                       "adore: best_of.priorities: is null",
                       std::invalid_argument);
  gpu::device_buffer<float> const priorities(20);
  gpu::device_buffer<position_t> kept(8);
  gpu::device_buffer<index_t> counts(2);
  args.priorities = priorities.data();
  args.kept = kept.data();
  args.counts = counts.data();
  args.kept_stride = 3;
  CHECK_THROWS_WITH_AS(gpu::best_of_async(stream, args),
                       doctest::Contains("kept_stride = 3: must be at least what a lane keeps"),
                       std::invalid_argument);
  args.kept_stride = 4;
  args.tokens.all = 11;
  CHECK_THROWS_WITH_AS(gpu::best_of_async(stream, args),
                       doctest::Contains("tokens.all = 11"),
                       std::invalid_argument);
}

}  // namespace adore::testing
