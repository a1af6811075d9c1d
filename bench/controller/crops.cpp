// SPDX-License-Identifier: Apache-2.0
#include "crops.hpp"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

namespace controller_labels {

std::vector<std::vector<std::int32_t>> choose_crops(
    std::vector<std::vector<std::int32_t>> const& texts,
    int length,
    int count,
    std::uint64_t seed) {
  std::vector<std::vector<std::int32_t>> crops;
  for (std::vector<std::int32_t> const& text : texts) {
    for (auto at = text.begin(); text.end() - at >= length; at += length) {
      crops.emplace_back(at, at + length);
    }
  }
  if (crops.size() < static_cast<std::size_t>(count)) {
    throw std::invalid_argument("the texts have " + std::to_string(crops.size()) + " pieces of " +
                                std::to_string(length) + " tokens, " + std::to_string(count) +
                                " are asked for");
  }
  std::mt19937_64 random(seed);
  std::shuffle(crops.begin(), crops.end(), random);
  crops.resize(static_cast<std::size_t>(count));
  return crops;
}

std::vector<int> choose_queries(query_range range, int count, std::uint64_t seed, int crop) {
  std::vector<int> positions(static_cast<std::size_t>(range.last - range.first + 1));
  std::iota(positions.begin(), positions.end(), range.first);
  if (positions.size() < static_cast<std::size_t>(count)) {
    throw std::invalid_argument("a sequence has " + std::to_string(positions.size()) +
                                " positions for queries, " + std::to_string(count) +
                                " are asked for");
  }
  std::seed_seq seeds{seed, seed >> 32, static_cast<std::uint64_t>(crop)};
  std::mt19937_64 random(seeds);
  std::vector<int> chosen;
  std::sample(positions.begin(), positions.end(), std::back_inserter(chosen), count, random);
  return chosen;  // std::sample keeps their order
}

}  // namespace controller_labels
