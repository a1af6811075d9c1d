// SPDX-License-Identifier: Apache-2.0
// Figures of a prediction against counts made by hand.
#include "adore/controller/prediction.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {

TEST_CASE("hits and misses by the threshold and by rank") {
  std::vector<float> const logits{2.0F, -1.0F, 0.0F, 1.0F, 1.0F, -3.0F};
  std::vector<std::uint8_t> const labels{1, 1, 0, 0, 1, 0};
  prediction_counts const above = predict_by_threshold(logits, labels);
  CHECK(above == prediction_counts{2, 1, 1, 2});  // predicted: 0, 3, 4
  CHECK(above.accuracy() == doctest::Approx(4.0 / 6.0));
  CHECK(above.f1() == doctest::Approx(4.0 / 6.0));
  CHECK(above.hit_rate() == doctest::Approx(2.0 / 3.0));
  CHECK(above.prevalence() == doctest::Approx(0.5));
  // of the two best the newer of equals: 0 and 4
  CHECK(predict_by_rank(logits, labels, 2) == prediction_counts{2, 0, 1, 3});
  CHECK(predict_by_rank(logits, labels, 3) == prediction_counts{2, 1, 1, 2});
  CHECK(predict_by_rank(logits, labels, 0) == prediction_counts{0, 0, 3, 3});
  CHECK(predict_by_rank(logits, labels, 99) == prediction_counts{3, 3, 0, 0});
}

TEST_CASE("counts of samples add up; nothing to count is 0, not a NaN") {
  prediction_counts sum{1, 2, 3, 4};
  sum += {10, 20, 30, 40};
  CHECK(sum == prediction_counts{11, 22, 33, 44});
  CHECK(sum.total() == 110);
  prediction_counts const nothing;
  CHECK(nothing.accuracy() == 0.0);
  CHECK(nothing.f1() == 0.0);
  CHECK(nothing.hit_rate() == 0.0);
  CHECK(nothing.prevalence() == 0.0);
}

TEST_CASE("predicted and labelled rates are tied to accuracy and F1") {
  // mean of both rates = (1 - accuracy) / (2 (1 - F1))
  std::mt19937 random(3);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<float> logits;
    std::vector<std::uint8_t> labels;
    for (int i = 0; i < 40; ++i) {
      logits.push_back(static_cast<float>(random() % 9) - 4.0F);
      labels.push_back(static_cast<std::uint8_t>(random() % 2));
    }
    prediction_counts const counts = predict_by_threshold(logits, labels);
    double const predicted =
        static_cast<double>(counts.true_positives + counts.false_positives) / 40.0;
    CHECK((predicted + counts.prevalence()) / 2.0 ==
          doctest::Approx((1.0 - counts.accuracy()) / (2.0 * (1.0 - counts.f1()))));
  }
}

TEST_CASE("a NaN is predicted last; labels and logits must be as many") {
  std::vector<float> const logits{std::numeric_limits<float>::quiet_NaN(), -5.0F};
  std::vector<std::uint8_t> const labels{1, 0};
  CHECK(predict_by_rank(logits, labels, 1) == prediction_counts{0, 1, 1, 0});
  CHECK(predict_by_threshold(logits, labels) == prediction_counts{0, 0, 1, 1});
  CHECK_THROWS_AS(predict_by_rank(logits, std::vector<std::uint8_t>(3), 1), std::logic_error);
  CHECK_THROWS_AS(predict_by_threshold(logits, std::vector<std::uint8_t>(1)), std::logic_error);
}

}  // namespace adore::testing
