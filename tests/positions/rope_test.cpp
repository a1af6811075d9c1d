// SPDX-License-Identifier: Apache-2.0
// Rotations against their formula, and rotary positions by rank in a cache.
#include "adore/positions/rope.hpp"

#include "adore/kv_cache.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/stores/host_store.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

namespace {

/// The rotation as a product of complex numbers, in double precision.
std::vector<double> turned(
    std::vector<float> const& x, index_t channels, double base, rope_pairs pairs, double position) {
  std::vector<double> result(x.begin(), x.end());
  for (index_t i = 0; i < channels / 2; ++i) {
    auto const a = static_cast<std::size_t>(pairs == rope_pairs::halves ? i : 2 * i);
    auto const b = pairs == rope_pairs::halves ? a + static_cast<std::size_t>(channels / 2) : a + 1;
    std::complex<double> const turn =
        std::polar(1.0, position * std::pow(base, -2.0 * i / channels));
    std::complex<double> const z = std::complex<double>(x[a], x[b]) * turn;
    result[a] = z.real();
    result[b] = z.imag();
  }
  return result;
}

/// StreamingLLM whose keys are all turned by their rank at every step: the slow way.
struct turned_by_rank : streaming_llm {
  static constexpr bool sinks_and_window = false;
};

constexpr index_t channels = 8;
constexpr double base = 10000.0;

/// A cache of one head, and one token after another through it.
template <class P>
struct stream {
  explicit stream(P policy, rope_pairs pairs = rope_pairs::halves)
      : cache(host_store<float>({1, 1, 1, 6, channels}),
              policy,
              {.rotation = rope(channels, base, pairs)}) {
    cache.open(0);
  }
  static std::vector<float> vector_of(position_t position, unsigned which) {
    std::mt19937 random(static_cast<unsigned>(position) * 3U + which);
    std::vector<float> x;
    for (index_t c = 0; c < channels; ++c) {
      x.push_back(static_cast<float>(random() % 256) / 128.0F - 1.0F);
    }
    return x;
  }
  std::vector<float> step() {
    position_t const n = cache.books().next_position(0);
    auto const q = vector_of(n, 0), k = vector_of(n, 1), v = vector_of(n, 2);
    std::vector<float> out(channels);
    cache.begin_step();
    cache.append(0,
                 token_view<float const>(k.data(), 1, 1, channels),
                 token_view<float const>(v.data(), 1, 1, channels));
    cache.attend(0,
                 token_view<float const>(q.data(), 1, 1, channels),
                 token_view<float>(out.data(), 1, 1, channels),
                 [&](attention_record const& record) {
                   attended.assign(record.positions.begin(), record.positions.end());
                 });
    cache.end_step();
    return out;
  }
  kv_cache<host_store<float>, P> cache;
  position_list attended;
};

/// Attention of query n over these tokens, whose rotary positions are their ranks.
std::vector<double> by_rank(position_list const& attended, rope_pairs pairs) {
  using s = stream<streaming_llm>;
  auto const last = static_cast<double>(attended.size() - 1);
  auto const q = turned(s::vector_of(attended.back(), 0), channels, base, pairs, last);
  std::vector<double> weights, out(channels, 0.0);
  double sum = 0.0;
  for (std::size_t rank = 0; rank < attended.size(); ++rank) {
    auto const k =
        turned(s::vector_of(attended[rank], 1), channels, base, pairs, static_cast<double>(rank));
    double dot = 0.0;
    for (std::size_t c = 0; c < k.size(); ++c) dot += q[c] * k[c];
    weights.push_back(std::exp(dot / std::sqrt(double{channels})));
    sum += weights.back();
  }
  for (std::size_t rank = 0; rank < attended.size(); ++rank) {
    auto const v = s::vector_of(attended[rank], 2);
    for (std::size_t c = 0; c < v.size(); ++c) out[c] += weights[rank] / sum * double{v[c]};
  }
  return out;
}

double distance(std::vector<float> const& a, auto const& b) {
  double worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
  return worst;
}

}  // namespace

TEST_CASE("both pair layouts equal their formula; channels beyond the rotated ones pass") {
  for (rope_pairs const pairs : {rope_pairs::halves, rope_pairs::adjacent}) {
    rope const rotation(6, 500.0, pairs);
    CHECK(rotation.channels() == 6);
    for (std::int64_t const position : {0, 1, 17, 1000, 4000000}) {
      std::vector<float> const x{1.0F, -0.5F, 0.25F, 2.0F, -1.5F, 0.75F, 9.0F, -9.0F};
      auto y = x;
      rotation.rotate(x.data(), y.data(), rotation.at(position));
      auto const expected = turned(x, 6, 500.0, pairs, static_cast<double>(position));
      CHECK(distance(y, expected) < 1e-6);
      auto in_place = x;
      rotation.rotate(in_place.data(), in_place.data(), rotation.at(position));
      CHECK(in_place == y);
    }
  }
}

TEST_CASE("a factor slows a pair down") {
  std::vector<float> const factors{1.0F, 4.0F};
  rope const scaled(4, 100.0, rope_pairs::halves, factors);
  rope const plain(4, 100.0, rope_pairs::halves);
  CHECK(scaled.at(8).cosine[0] == plain.at(8).cosine[0]);
  CHECK(scaled.at(8).cosine[1] == plain.at(2).cosine[1]);
}

TEST_CASE("rotations refuse what makes no sense") {
  CHECK_THROWS_AS(rope(7, 1e4, rope_pairs::halves), std::invalid_argument);
  CHECK_THROWS_AS(rope(0, 1e4, rope_pairs::halves), std::invalid_argument);
  CHECK_THROWS_AS(rope(8, 0.0, rope_pairs::halves), std::invalid_argument);
  std::vector<float> const three(3, 1.0F);
  CHECK_THROWS_AS(rope(8, 1e4, rope_pairs::halves, three), std::invalid_argument);
  CHECK_THROWS_AS(kv_cache(host_store<float>({1, 1, 1, 6, 8}), streaming_llm{2, 3}),
                  std::invalid_argument);
}

TEST_CASE("by rank: tokens are seen at the positions 0, 1, ... of what is attended") {
  table const attended = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 0 1 2 3 4 | 0 1 2 3 4 5 | 0 1 3 4 5 6 | 0 1 4 5 6 7 | "
      "0 1 5 6 7 8 | 0 1 6 7 8 9 | 0 1 7 8 9 10");
  for (rope_pairs const pairs : {rope_pairs::halves, rope_pairs::adjacent}) {
    stream shifted(streaming_llm{.sinks = 2, .window = 3}, pairs);
    stream<turned_by_rank> ranked({streaming_llm{.sinks = 2, .window = 3}}, pairs);
    for (position_list const& expected : attended) {
      auto const out = shifted.step();
      auto const slow = ranked.step();
      CHECK(shifted.attended == expected);
      CHECK(ranked.attended == expected);
      CHECK(distance(out, by_rank(expected, pairs)) < 1e-5);
      CHECK(distance(slow, by_rank(expected, pairs)) < 1e-5);
    }
  }
}

TEST_CASE("turning only the sinks equals turning everything, up to position 100000") {
  stream shifted(streaming_llm{.sinks = 2, .window = 3});
  double worst = 0.0;
  for (position_t n = 0; n < 12; ++n) shifted.step();
  for (position_t const start : {100, 9999, 65536, 99990}) {
    // the sequence leaps ahead: after as many steps as the window has, only the sinks are old
    row_snapshot saved = shifted.cache.snapshot(0);
    saved.next = start;
    shifted.cache.close(0);
    shifted.cache.restore(0, saved);
    for (int n = 0; n < 4; ++n) shifted.step();
    for (int n = 0; n < 6; ++n) {
      auto const out = shifted.step();
      REQUIRE(shifted.attended.size() == 6);
      REQUIRE(shifted.attended.front() == 0);
      worst = std::max(worst, distance(out, by_rank(shifted.attended, rope_pairs::halves)));
    }
  }
  CHECK(worst < 1e-5);
}

}  // namespace adore::testing
