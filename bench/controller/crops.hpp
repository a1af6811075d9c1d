// SPDX-License-Identifier: Apache-2.0
// Which pieces of the texts, and which of their queries, the labels are gathered from.
#pragma once

#include "labels.hpp"

#include <cstdint>
#include <vector>

namespace controller_labels {

/// `count` of the pieces of `length` tokens into which each text is cut from its start, at random;
/// no two overlap, so that sequences to validate were never trained on.
///
/// @throws std::invalid_argument if the texts have too few
std::vector<std::vector<std::int32_t>> choose_crops(
    std::vector<std::vector<std::int32_t>> const& texts, int length, int count, std::uint64_t seed);

/// `count` positions of a range at random, ascending.
///
/// @param crop  each has its own positions
/// @throws std::invalid_argument if the range has fewer
std::vector<int> choose_queries(query_range range, int count, std::uint64_t seed, int crop);

}  // namespace controller_labels
