// SPDX-License-Identifier: Apache-2.0
// The tanh of the score layers against the standard one.
#include "adore/controller/tanh.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace adore::testing {

TEST_CASE("the branchless tanh is the standard one to 3e-7, and odd ends are exact") {
  double worst = 0.0;
  std::vector<float> arguments;
  for (int i = -200000; i <= 200000; ++i) arguments.push_back(static_cast<float>(i) / 10000.0F);
  auto values = arguments;
  tanh_of_each(values.data(), static_cast<index_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    worst = std::max(worst, std::abs(double{values[i]} - std::tanh(double{arguments[i]})));
  }
  MESSAGE("largest difference " << worst);
  CHECK(worst < 3e-7);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(branchless_tanh(0.0F) == 0.0F);
  CHECK(branchless_tanh(infinity) == 1.0F);
  CHECK(branchless_tanh(-infinity) == -1.0F);
  CHECK(branchless_tanh(1e30F) == 1.0F);
  CHECK(std::isnan(branchless_tanh(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace adore::testing
