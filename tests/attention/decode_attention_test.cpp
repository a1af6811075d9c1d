// SPDX-License-Identifier: Apache-2.0
// The softmax where the exponential function alone would leave the numbers, and the reduction of a
// group of query heads.
#include "adore/attention/decode_attention.hpp"

#include "adore/attention/gqa.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <vector>

namespace adore::testing {

TEST_CASE("a softmax depends on the differences of its logits alone, however large they are") {
  std::vector<float> const logits{-2.0F, 0.5F, 1.0F, keep_never};
  std::vector<float> expected = logits;
  softmax(expected);
  CHECK(double{expected[2]} ==
        doctest::Approx(1.0 / (std::exp(-3.0) + std::exp(-0.5) + 1.0)).epsilon(1e-6));
  CHECK(expected[3] == 0.0F);
  for (float const shift : {-4096.0F, -256.0F, 96.0F, 4096.0F}) {  // exp(89) is infinite
    std::vector<float> shifted = logits;
    for (float& logit : shifted) logit += shift;
    softmax(shifted);
    CHECK(shifted == expected);
  }
}

TEST_CASE("a group's probabilities become their sum, mean or largest") {
  std::vector<std::vector<float>> const heads{
      {0.5F, 0.25F, 0.25F}, {0.0F, 1.0F, 0.0F}, {0.25F, 0.25F, 0.5F}, {0.25F, 0.5F, 0.25F}};
  auto const reduced = [&](gqa_reduction reduction, std::size_t group) {
    std::vector<float> weights(3, 7.0F);  // what stood there before does not count
    for (std::size_t member = 0; member < group; ++member) {
      reduce_head(reduction,
                  weights.data(),
                  heads[member].data(),
                  3,
                  static_cast<index_t>(member),
                  static_cast<index_t>(group));
    }
    return weights;
  };
  CHECK(reduced(gqa_reduction::sum, 4) == std::vector{1.0F, 2.0F, 1.0F});
  CHECK(reduced(gqa_reduction::mean, 4) == std::vector{0.25F, 0.5F, 0.25F});
  CHECK(reduced(gqa_reduction::max, 4) == std::vector{0.5F, 1.0F, 0.5F});
  for (gqa_reduction const any : {gqa_reduction::sum, gqa_reduction::mean, gqa_reduction::max}) {
    CHECK(reduced(any, 1) == heads[0]);
  }
}

}  // namespace adore::testing
