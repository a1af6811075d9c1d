// SPDX-License-Identifier: Apache-2.0
// Sets of positions and rows of weights in the notation of published tables.
#pragma once

#include "adore/types.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace adore::testing {

using position_list = std::vector<position_t>;
using table = std::vector<position_list>;

/// Attention of one query: position -> weight, the heads of a lane already reduced.
using weight_row = std::map<position_t, float>;

/// "0 | 0 1 | 1 2": one list per step.
inline table lists(std::string const& text) {
  table all(1);
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word == "|") {
      all.emplace_back();
    } else {
      all.back().push_back(std::stoi(word));
    }
  }
  return all;
}

/// first, first + 1, ..., end - 1
inline position_list from_to(position_t first, position_t end) {
  position_list all;
  for (position_t p = first; p < end; ++p) all.push_back(p);
  return all;
}

/// Weights in units of 1/16 on these positions.
inline weight_row sixteenths(position_list const& positions, position_list const& weights) {
  REQUIRE(positions.size() == weights.size());
  weight_row row;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    row[positions[i]] = static_cast<float>(weights[i]) / 16.0F;
  }
  return row;
}

inline position_list sorted(position_list positions) {
  std::sort(positions.begin(), positions.end());
  return positions;
}

inline position_list with(position_list positions, position_t one_more) {
  positions.push_back(one_more);
  return positions;
}

}  // namespace adore::testing

namespace doctest {
template <>
struct StringMaker<adore::testing::position_list> {
  static String convert(adore::testing::position_list const& positions) {
    std::string text = "{";
    for (adore::position_t const p : positions) {
      text += (text.size() > 1 ? ", " : "") + std::to_string(p);
    }
    return (text + "}").c_str();
  }
};
}  // namespace doctest
