// SPDX-License-Identifier: Apache-2.0
// The released tokens that come back are the best by score, under the library's order.
#include "adore/rebuild/choose.hpp"

#include "support/literal_order.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

namespace {

position_list chosen(std::vector<float> const& logits,
                     std::vector<std::uint8_t> const& is_cached,
                     index_t count) {
  position_list result(static_cast<std::size_t>(count));
  result.resize(static_cast<std::size_t>(choose_rebuilt(logits, is_cached, count, result)));
  return result;
}

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("the best released tokens come back, ascending, the newer of equals") {
  std::vector<float> const logits{9, 3, 8, 6, 1, 7, 6};
  std::vector<std::uint8_t> const is_cached{1, 0, 1, 0, 0, 1, 0};
  CHECK(chosen(logits, is_cached, 0) == position_list{});
  CHECK(chosen(logits, is_cached, 1) == position_list{6});
  CHECK(chosen(logits, is_cached, 2) == position_list{3, 6});
  CHECK(chosen(logits, is_cached, 3) == position_list{1, 3, 6});
  CHECK(chosen(logits, is_cached, 9) == position_list{1, 3, 4, 6});  // fewer were released
  CHECK(chosen({}, {}, 2) == position_list{});
}

TEST_CASE("a NaN comes last, minus zero equals zero") {
  CHECK(chosen({nan, -infinity, nan}, {0, 0, 0}, 1) == position_list{1});
  CHECK(chosen({nan, -infinity, nan}, {0, 0, 0}, 2) == position_list{1, 2});
  CHECK(chosen({0.0F, -0.0F}, {0, 0}, 1) == position_list{1});
  CHECK(chosen({-0.0F, 0.0F}, {0, 0}, 1) == position_list{1});
}

TEST_CASE("random scores with ties: the literal order's best") {
  std::mt19937 random(21);
  for (int trial = 0; trial < 3000; ++trial) {
    auto const tokens = random() % 20;
    std::vector<float> logits;
    std::vector<std::uint8_t> is_cached;
    std::map<int, float> released;
    for (std::size_t p = 0; p < tokens; ++p) {
      logits.push_back(random() % 11 == 0 ? nan : static_cast<float>(random() % 7) - 3.0F);
      is_cached.push_back(static_cast<std::uint8_t>(random() % 2));
      if (is_cached.back() == 0) released[static_cast<int>(p)] = logits.back();
    }
    auto const count = static_cast<int>(random() % 8);
    auto expected = literal::top(count, released);
    std::sort(expected.begin(), expected.end());
    CHECK(chosen(logits, is_cached, count) == expected);
  }
}

TEST_CASE("lists of different lengths and too little room are refused") {
  std::vector<position_t> out(2);
  CHECK_THROWS_AS(choose_rebuilt(std::vector<float>(3), std::vector<std::uint8_t>(2), 1, out),
                  std::logic_error);
  CHECK_THROWS_AS(choose_rebuilt(std::vector<float>(3), std::vector<std::uint8_t>(3), 3, out),
                  std::logic_error);
  CHECK_THROWS_AS(choose_rebuilt(std::vector<float>(3), std::vector<std::uint8_t>(3), -1, out),
                  std::logic_error);
}

}  // namespace adore::testing
