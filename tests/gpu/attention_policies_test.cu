// SPDX-License-Identifier: Apache-2.0
// Attention under policies that hide tokens, attend the strongest keys only, or release whole
// blocks.
#include "support/attention_case.cuh"
#include "support/attention_step.cuh"
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/unobserved_step.cuh>
#include <adore/policies/adaptors/in_blocks.hpp>
#include <adore/policies/dynamic_top_k.hpp>
#include <adore/policies/h2o.hpp>
#include <adore/policies/h2o_mask_simulation.hpp>
#include <adore/policies/key_norm.hpp>
#include <adore/policies/sentinel.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace adore::testing {
namespace {

/// A lane of one block, several new tokens in several passes, the blocks of a cluster.
template <class T, class P>
void check_shapes(P const& policy) {
  check_step<T, 64>(policy, {4, 2, 3, 40, 1}, 31);
  check_step<T, 64>(policy, {3, 2, 4, 77, 5}, 32);
  check_step<T, 64>(policy, {2, 1, 2, 2100, 3}, 33);
}

TEST_CASE("attention under masks by state: h2o_mask_simulation") {
  check_shapes<__nv_bfloat16>(h2o_mask_simulation{.heavy = 10, .recent = 6});
  check_shapes<float>(h2o_mask_simulation{.heavy = 10, .recent = 6});
}
TEST_CASE("attention under masks by state: sentinel") {
  check_shapes<__nv_bfloat16>(sentinel{.open = 1, .close = 2, .tail = 7});
  check_shapes<__nv_bfloat16>(sentinel{.open = 1, .close = 2});
}
TEST_CASE("attention decides by scores that it does not change in a step that is not observed") {
  check_shapes<__nv_bfloat16>(gpu::unobserved{h2o{.heavy = 10, .recent = 10}});
  check_shapes<float>(gpu::unobserved{h2o_mask_simulation{.heavy = 10, .recent = 6}});
}
TEST_CASE("attention measures the new keys for a policy that scores them") {
  check_shapes<__nv_bfloat16>(key_norm{.size = 20, .recent = 3});
  check_shapes<float>(key_norm{.size = 20, .recent = 3});
}
TEST_CASE("attention decides on whole blocks") {
  check_shapes<__nv_bfloat16>(in_blocks<h2o>{{}, {.heavy = 20, .recent = 8}, 4});
}
TEST_CASE("each query attends its strongest keys: dynamic_top_k") {
  check_shapes<__nv_bfloat16>(dynamic_top_k{.count = 9});
  check_shapes<float>(dynamic_top_k{.count = 9, .include_self = true});
  check_shapes<__half>(dynamic_top_k{.count = 9, .agreed = top_k_scope::kv_head});
  check_step<float, 128>(dynamic_top_k{.count = 5000}, {2, 2, 2, 300, 2}, 34);  // all
}

TEST_CASE("all heads of a layer agree on the strongest keys") {
  using T = float;
  constexpr int channels = 64;
  attention_shape const shape{1, 2, 2, 40, 1};
  attention_case<T, channels> c(shape, 35);
  dynamic_top_k const policy{.count = 6, .agreed = top_k_scope::layer};
  std::mt19937_64 engine(36);
  gpu::device_ledger<dynamic_top_k> books(policy, c.cache, scope::layer);
  row_snapshot const before = random_books(books.view(), 30, 39, unbounded, engine);
  books.restore(nullptr, 0, before);
  auto const positions = positions_of(books, 0);
  gpu::attend_async<channels>(nullptr, c.args(), books.view(), policy);
  auto const out = c.out.to_host(nullptr);

  std::vector<double> together(positions.size(), 0.0);
  for (index_t head = 0; head < 4; ++head) {
    auto const weights = attend_exactly(c, positions, 0, head, 0, before.next).weights;
    for (std::size_t s = 0; s < weights.size(); ++s) together[s] += weights[s];
  }
  std::vector<double> ordered = together;
  std::nth_element(ordered.begin(), ordered.begin() + 5, ordered.end(), std::greater<>());
  std::vector<char> attended;
  for (double const weight : together) attended.push_back(weight >= ordered[5] ? 1 : 0);
  for (index_t head = 0; head < 4; ++head) {
    auto const exact = attend_exactly(c, positions, 0, head, 0, before.next, attended);
    for (int i = 0; i < channels; ++i) {
      CHECK(std::abs(out[static_cast<std::size_t>(head * channels + i)] -
                     exact.out[static_cast<std::size_t>(i)]) < 1e-4);
    }
  }
  gpu::device_ledger<dynamic_top_k> const each(policy, c.cache, scope::kv_head);
  CHECK_THROWS_AS(gpu::attend_async<channels>(nullptr, c.args(), each.view(), policy),
                  std::invalid_argument);
}

TEST_CASE("lanes too long to choose the strongest keys are refused") {
  attention_case<float, 64> c({1, 1, 1, 40'000, 1}, 37);
  dynamic_top_k const policy{.count = 6};
  gpu::device_ledger<dynamic_top_k> const books(policy, c.cache, scope::kv_head);
  CHECK_THROWS_WITH_AS(gpu::attend_async<64>(nullptr, c.args(), books.view(), policy),
                       doctest::Contains("40000 slots"),
                       std::invalid_argument);
}

}  // namespace
}  // namespace adore::testing
