// SPDX-License-Identifier: Apache-2.0
// Element types and head sizes that attention_test.cu leaves out, with two policies.
#include "support/attention_step.cuh"
#include <adore/policies/h2o.hpp>
#include <adore/policies/sliding_window.hpp>

#include <doctest/doctest.h>

namespace adore::testing {
namespace {

template <class T, int Channels>
void check_shapes() {
  check_step<T, Channels>(h2o{.heavy = 10, .recent = 10}, {4, 2, 4, 40, 1}, 501);
  check_step<T, Channels>(h2o{.heavy = 10, .recent = 10}, {3, 2, 3, 77, 5}, 502);
  check_step<T, Channels>(sliding_window{.size = 100}, {3, 1, 1, 200, 1}, 503);
  check_step<T, Channels>(sliding_window{.size = 70}, {2, 1, 16, 100, 1}, 504);
}

TEST_CASE("attention is exact, appends and decides: half, 64 channels") {
  check_shapes<__half, 64>();
}
TEST_CASE("attention is exact, appends and decides: half, 96 channels") {
  check_shapes<__half, 96>();
}
TEST_CASE("attention is exact, appends and decides: half, 256 channels") {
  check_shapes<__half, 256>();
}
TEST_CASE("attention is exact, appends and decides: float, 96 channels") {
  check_shapes<float, 96>();
}
TEST_CASE("attention is exact, appends and decides: float, 128 channels") {
  check_shapes<float, 128>();
}
TEST_CASE("attention is exact, appends and decides: float, 256 channels") {
  check_shapes<float, 256>();
}

}  // namespace
}  // namespace adore::testing
