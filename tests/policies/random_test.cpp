// SPDX-License-Identifier: Apache-2.0
// The random policies and the generator under them.
#include "adore/policies/random.hpp"

#include "adore/philox.hpp"
#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

namespace adore::testing {

namespace {

std::uint64_t words(std::uint32_t first, std::uint32_t second) {
  return (std::uint64_t{second} << 32U) | first;
}

}  // namespace

TEST_CASE("Philox gives the known answers of Random123") {
  CHECK(philox(0, 0) == words(0xff1dae59U, 0x6cd10df2U));
  CHECK(philox(0xffffffffU, words(0xffffffffU, 0xffffffffU)) == words(0x2c3f628bU, 0xab4fd7adU));
  CHECK(philox(0x13198a2eU, words(0x243f6a88U, 0x85a308d3U)) == words(0xdd7ce038U, 0xf62a4c12U));
}

TEST_CASE("random floats lie in [0, 1) and use 24 bits") {
  CHECK(unit_float(0) == 0.0F);
  CHECK(unit_float(0xffffffffU) == 1.0F - 0x1p-24F);
  CHECK(unit_float(0x80000000U) == 0.5F);
}

TEST_CASE("streams differ by seed, layer and head") {
  std::set<std::uint32_t> keys;
  for (std::uint64_t const seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32U}) {
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      for (std::int32_t head = 0; head < 4; ++head) keys.insert(stream_key(seed, layer, head));
    }
  }
  CHECK(keys.size() == 48);
}

TEST_CASE("a seed names one sample for ever") {
  ledger_driver driver(random_reservoir{.size = 4}, 1);
  driver.step_blind(16);
  position_list best = from_to(0, 16);
  auto const priority = [&](position_t p) {
    return static_cast<std::uint32_t>(philox(stream_key(1, 0, 0), static_cast<std::uint32_t>(p))) >>
           8U;
  };
  std::sort(best.begin(), best.end(), [&](position_t a, position_t b) {
    return priority(a) > priority(b);
  });
  best.resize(4);
  CHECK(driver.kept() == sorted(best));
  CHECK(driver.kept() == position_list{1, 2, 7, 10});
  ledger_driver again(random_victim{.size = 4}, 1);
  for (int n = 0; n < 16; ++n) again.step_blind();
  CHECK(again.kept() == position_list{2, 10, 12, 14});
}

TEST_CASE("the reservoir keeps each token with the same chance, and each pair of tokens too") {
  // n = 10 tokens, m = 4: expected counts are seeds x 4 / 10; the counts of one seed sum to m, so
  // chi-square has n - 1 degrees of freedom after scaling by 1 - m / n
  constexpr int seeds = 100000;
  constexpr std::size_t n = 10;
  constexpr double share = 0.4;
  std::vector<int> counts(n, 0);
  int first_and_last = 0;
  random_reservoir const policy{.size = 4};
  ledger_driver driver(policy, 0, 11, 10);
  for (int seed = 0; seed < seeds; ++seed) {
    driver.books.close(0);
    driver.books.open(0, static_cast<std::uint64_t>(seed));
    driver.books.forget_released();
    driver.books.place(0, n);
    driver.books.commit(0, n, nullptr);
    driver.books.advance(0, n);
    auto const kept = driver.kept();
    REQUIRE(kept.size() == 4);
    for (position_t const p : kept) ++counts[static_cast<std::size_t>(p)];
    if (kept.front() == 0 && kept.back() == n - 1) ++first_and_last;
  }
  double chi_square = 0.0;
  for (int const count : counts) {
    double const off = count - seeds * share;
    chi_square += off * off / (seeds * share);
  }
  chi_square *= (n - 1) / (n * (1.0 - share));
  CHECK(chi_square < 27.88);  // 9 degrees of freedom, 0.1 %
  double const pairs = seeds * (4.0 * 3.0) / (10.0 * 9.0);
  CHECK(std::abs(first_and_last - pairs) < 3.3 * std::sqrt(pairs));
}

TEST_CASE("a victim drawn at every step lets the past fade away") {
  constexpr int seeds = 20000;
  int first_survives = 0;
  ledger_driver driver(random_victim{.size = 4}, 0, 5, 1);
  for (int seed = 0; seed < seeds; ++seed) {
    driver.books.close(0);
    driver.books.open(0, static_cast<std::uint64_t>(seed));
    for (int n = 0; n < 14; ++n) {
      driver.books.place(0, 1);
      driver.books.commit(0, 1, nullptr);
      driver.books.advance(0, 1);
    }
    driver.books.forget_released();
    if (driver.kept().front() == 0) ++first_survives;
  }
  double const expected = seeds * std::pow(4.0 / 5.0, 10);
  CHECK(std::abs(first_survives - expected) < 3.3 * std::sqrt(expected));
}

}  // namespace adore::testing
