// SPDX-License-Identifier: Apache-2.0
// Rotation on the device against angles in long double, in both layouts, also far out in a text.
#include "adore/gpu/rope.cuh"
#include "adore/policies/h2o.hpp"
#include "adore/positions/rope.hpp"
#include "support/books_on_device.cuh"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {
namespace {

/// One head turned in long double.
template <class T>
std::vector<double> turned(T const* head,
                           index_t channels,
                           index_t rotated,
                           double base,
                           rope_pairs layout,
                           std::vector<float> const& factors,
                           std::int64_t position) {
  std::vector<double> result;
  for (index_t c = 0; c < channels; ++c) result.push_back(number(head[c]));
  index_t const pairs = rotated / 2;
  for (index_t i = 0; i < pairs; ++i) {
    long double const factor =
        factors.empty() ? 1.0L : static_cast<long double>(factors[static_cast<std::size_t>(i)]);
    long double const angle = static_cast<long double>(position) *
                              std::pow(static_cast<long double>(base), -2.0L * i / rotated) /
                              factor;
    index_t const a = layout == rope_pairs::halves ? i : 2 * i;
    index_t const b = layout == rope_pairs::halves ? i + pairs : 2 * i + 1;
    double const x = number(head[a]), y = number(head[b]);
    auto const cosine = static_cast<double>(std::cos(angle));
    auto const sine = static_cast<double>(std::sin(angle));
    result[static_cast<std::size_t>(a)] = x * cosine - y * sine;
    result[static_cast<std::size_t>(b)] = x * sine + y * cosine;
  }
  return result;
}

/// Largest error of a turned head, whose channels are at most 4 in size.
template <class T>
double error_of(T const* got, std::vector<double> const& wanted) {
  double worst = 0.0;
  for (std::size_t c = 0; c < wanted.size(); ++c) {
    double const error = std::abs(number(got[c]) - wanted[c]);
    worst = error <= worst ? worst : error;  // a NaN is worst
  }
  return worst;
}

template <class T>
void check_rotation(index_t channels,
                    index_t rotated,
                    rope_pairs layout,
                    std::vector<float> const& factors,
                    double tolerance) {
  CAPTURE(channels);
  CAPTURE(rotated);
  constexpr double base = 10000.0;
  constexpr index_t heads = 19, kv_heads = 3;
  test_stream const stream;
  std::mt19937 random(5);
  device_tensor<position_t> positions({0, 1, 777, -1, 131071, 4'000'000, 2'147'483'000});
  auto const tokens = static_cast<index_t>(positions.host.size());
  device_tensor<T> q(random_exact<T>(static_cast<std::size_t>(tokens * heads * channels), random));
  device_tensor<T> k(
      random_exact<T>(static_cast<std::size_t>(tokens * kv_heads * channels), random));
  auto const q_before = q.host, k_before = k.host;
  gpu::device_rope const rotation(rotated, base, layout, factors);
  gpu::rotate_async(stream,
                    rotation.view(),
                    gpu::given_positions{positions.data()},
                    token_view<T>(q.data(), tokens, heads, channels),
                    token_view<T>(k.data(), tokens, kv_heads, channels));
  q.fetch(stream);
  k.fetch(stream);
  auto const check = [&](std::vector<T> const& before, std::vector<T> const& after, index_t count) {
    for (index_t token = 0; token < tokens; ++token) {
      for (index_t head = 0; head < count; ++head) {
        auto const at = static_cast<std::size_t>((token * count + head) * channels);
        position_t const p = positions.host[static_cast<std::size_t>(token)];
        if (p < 0) {
          CHECK(std::memcmp(
                    &after[at], &before[at], static_cast<std::size_t>(channels) * sizeof(T)) == 0);
        } else {
          auto const wanted = turned(&before[at], channels, rotated, base, layout, factors, p);
          // beyond 4e6 the product of position and frequency itself is rounded in double
          CHECK(error_of(&after[at], wanted) < (p > 4'000'000 ? tolerance + 1e-5 : tolerance));
        }
      }
    }
  };
  check(q_before, q.host, heads);
  check(k_before, k.host, kv_heads);
}

}  // namespace

TEST_CASE("q and k are turned by their positions in both layouts") {
  for (rope_pairs const layout : {rope_pairs::halves, rope_pairs::adjacent}) {
    check_rotation<float>(128, 128, layout, {}, 4e-6);
    check_rotation<float>(64, 48, layout, {}, 4e-6);  // a part of the channels
    check_rotation<float>(1024, 1024, layout, {}, 4e-6);
    check_rotation<__half>(96, 96, layout, {}, 4e-3);
    check_rotation<__nv_bfloat16>(256, 256, layout, {}, 3e-2);
    std::vector<float> factors(32, 1.0F);
    for (std::size_t i = 10; i < factors.size(); ++i) factors[i] = 8.0F;
    check_rotation<float>(64, 64, layout, factors, 4e-6);
  }
}

TEST_CASE("an angle at position four million is right to 1e-5 radians") {
  test_stream const stream;
  constexpr index_t channels = 128, pairs = channels / 2;
  constexpr position_t far = 4'000'000;
  std::vector<float> unit(channels, 0.0F);
  std::fill_n(unit.begin(), pairs, 1.0F);  // each pair is (1, 0): its angle can be read off
  device_tensor<float> q(unit);
  device_tensor<position_t> position({far});
  gpu::device_rope const rotation(channels, 500000.0, rope_pairs::halves);
  gpu::rotate_async(stream,
                    rotation.view(),
                    gpu::given_positions{position.data()},
                    token_view<float>(q.data(), 1, 1, channels));
  q.fetch(stream);
  for (index_t i = 0; i < pairs; ++i) {
    long double const angle = far * std::pow(500000.0L, -2.0L * i / channels);
    auto const got =
        std::atan2(static_cast<long double>(q.host[static_cast<std::size_t>(i + pairs)]),
                   static_cast<long double>(q.host[static_cast<std::size_t>(i)]));
    CHECK(std::abs(std::remainder(got - angle, 2.0L * std::numbers::pi_v<long double>)) < 1e-5L);
  }
}

TEST_CASE("host and device turn alike") {
  test_stream const stream;
  std::mt19937 random(9);
  std::vector<float> const factors{1.0F, 2.0F, 4.0F, 8.0F};
  device_tensor<float> q(random_exact<float>(8, random));
  device_tensor<position_t> position({123});
  rope const on_host(8, 10000.0, rope_pairs::adjacent, factors);
  gpu::device_rope const on_device(8, 10000.0, rope_pairs::adjacent, factors);
  std::vector<float> expected(8);
  on_host.rotate(q.host.data(), expected.data(), on_host.at(123));
  gpu::rotate_async(stream,
                    on_device.view(),
                    gpu::given_positions{position.data()},
                    token_view<float>(q.data(), 1, 1, 8));
  q.fetch(stream);
  for (std::size_t c = 0; c < 8; ++c)
    CHECK(q.host[c] == doctest::Approx(expected[c]).epsilon(1e-6));
}

TEST_CASE("by the ledger, the j-th new token of a row is turned by next + j and padding is left") {
  test_stream const stream;
  std::mt19937 random(6);
  constexpr index_t rows = 3, max_new = 2, channels = 64;
  books_on_device<h2o> books({rows, 1, 1, 8, max_new});
  books.row(0) = {.next = 100, .count = 2, .seed = 0};
  books.row(1) = {.next = 3, .count = 0, .seed = 0};
  books.row(2) = {.next = 40, .count = 1, .seed = 0};
  books.to_device(stream);
  device_tensor<float> q(random_exact<float>((rows + 1) * max_new * channels, random));
  auto const before = q.host;
  gpu::device_rope const rotation(channels, 10000.0, rope_pairs::halves);
  gpu::rotate_async(stream,
                    rotation.view(),
                    gpu::step_positions(books.view()),
                    token_view<float>(q.data(), (rows + 1) * max_new, 1, channels));
  q.fetch(stream);
  std::vector<position_t> const expected{100, 101, -1, -1, 40, -1, -1, -1};  // no row is the last
  for (std::size_t token = 0; token < expected.size(); ++token) {
    float const* const from = &before[token * channels];
    float const* const to = &q.host[token * channels];
    if (expected[token] < 0) {
      CHECK(std::memcmp(from, to, channels * sizeof(float)) == 0);
    } else {
      CHECK(
          error_of(
              to,
              turned(from, channels, channels, 10000.0, rope_pairs::halves, {}, expected[token])) <
          4e-6);
    }
  }
}

TEST_CASE("sinks are turned from their unturned keys to where cache-index positions want them") {
  test_stream const stream;
  std::mt19937 random(8);
  constexpr index_t rows = 2, kv_heads = 17, slots = 10, sinks = 3, channels = 96, rotated = 64;
  device_tensor<float> source(random_exact<float>(rows * kv_heads * sinks * channels, random));
  device_tensor<float> keys(random_exact<float>(rows * kv_heads * slots * channels, random));
  auto const before = keys.host;
  device_tensor<index_t> to({0, 1, 2, 7, -1, 5});  // [row, sink]; one row has lost a sink
  device_tensor<position_t> rank({0, 1, 2, 0, -1, 1});
  device_tensor<position_t> delta({90, 4'000'000});
  kv_view<float const> const from_view(source.data(), rows, kv_heads, sinks, channels);
  kv_view<float> const to_view(keys.data(), rows, kv_heads, slots, channels);
  gpu::device_rope const rotation(rotated, 10000.0, rope_pairs::adjacent);
  gpu::turned_slots const chosen{
      .count = sinks, .to = to.data(), .base = rank.data(), .delta = delta.data()};
  gpu::rotate_by_async(stream, rotation.view(), chosen, from_view, to_view);
  keys.fetch(stream);
  auto expected = before;
  for (index_t row = 0; row < rows; ++row) {
    for (index_t head = 0; head < kv_heads; ++head) {
      for (index_t i = 0; i < sinks; ++i) {
        auto const entry = static_cast<std::size_t>(row * sinks + i);
        if (to.host[entry] < 0) continue;
        float const* const from =
            &source
                 .host[static_cast<std::size_t>(((row * kv_heads + head) * sinks + i) * channels)];
        auto const at =
            static_cast<std::size_t>(((row * kv_heads + head) * slots + to.host[entry]) * channels);
        auto const wanted =
            turned(from,
                   channels,
                   rotated,
                   10000.0,
                   rope_pairs::adjacent,
                   {},
                   std::int64_t{rank.host[entry]} + delta.host[static_cast<std::size_t>(row)]);
        CHECK(error_of(&keys.host[at], wanted) < 4e-6);
        std::copy_n(&keys.host[at], channels, &expected[at]);
      }
    }
  }
  CHECK(keys.host == expected);  // nothing but the chosen slots has changed
}

TEST_CASE("keys that lie turned are turned on in place, with a list for each head") {
  test_stream const stream;
  std::mt19937 random(10);
  constexpr index_t kv_heads = 2, slots = 4, channels = 64;
  device_tensor<__half> keys(random_exact<__half>(kv_heads * slots * channels, random));
  auto const before = keys.host;
  device_tensor<index_t> chosen({1, 3, 0, 2});  // [head, i]
  device_tensor<position_t> delta({-25});
  kv_view<__half> const view(keys.data(), 1, kv_heads, slots, channels);
  gpu::device_rope const rotation(channels, 10000.0, rope_pairs::halves);
  gpu::turned_slots const lists{.count = 2,
                                .lists = kv_heads,
                                .from = chosen.data(),
                                .to = chosen.data(),
                                .delta = delta.data()};
  gpu::rotate_by_async(stream, rotation.view(), lists, view, view);
  keys.fetch(stream);
  for (index_t head = 0; head < kv_heads; ++head) {
    for (index_t slot = 0; slot < slots; ++slot) {
      auto const at = static_cast<std::size_t>((head * slots + slot) * channels);
      bool const moved = slot % 2 == (head == 0 ? 1 : 0);
      auto const wanted =
          turned(&before[at], channels, channels, 10000.0, rope_pairs::halves, {}, moved ? -25 : 0);
      CHECK(error_of(&keys.host[at], wanted) < (moved ? 4e-3 : 1e-30));
    }
  }
}

TEST_CASE("a rotation that does not fit is refused") {
  test_stream const stream;
  CHECK_THROWS_AS(gpu::device_rope(7, 10000.0, rope_pairs::halves), std::invalid_argument);
  CHECK_THROWS_AS(gpu::device_rope(2048, 10000.0, rope_pairs::halves), std::invalid_argument);
  gpu::device_rope const rotation(64, 10000.0, rope_pairs::halves);
  gpu::device_buffer<float> q(64);
  CHECK_THROWS_AS(gpu::rotate_async(stream,
                                    rotation.view(),
                                    gpu::given_positions{nullptr},
                                    token_view<float>(q.data(), 1, 2, 32)),
                  std::invalid_argument);
  gpu::device_buffer<float> keys(64 * 8);
  keys.fill_async(0, stream);
  gpu::device_buffer<position_t> const delta(std::vector<position_t>{1});
  auto const turn = [&](stride_t slot_stride, stride_t channel_stride, position_t const* by) {
    kv_view<float> view(keys.data(), 1, 1, 8, 64);
    view.slot_stride = slot_stride;
    view.channel_stride = channel_stride;
    gpu::rotate_by_async(stream, rotation.view(), {.count = 1, .delta = by}, view, view);
  };
  CHECK_NOTHROW(turn(64, 1, delta.data()));
  CHECK_THROWS_WITH_AS(
      turn(1, 8, delta.data()), doctest::Contains("channel_stride = 8"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(turn(64, 1, nullptr), "adore: rotate_by: delta is null", std::logic_error);
}

}  // namespace adore::testing
