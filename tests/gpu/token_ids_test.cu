// SPDX-License-Identifier: Apache-2.0
// What a policy hears of a step's tokens on the device, how it numbers them, and what it forgets
// when some are rejected; by hand.
#include <adore/gpu/decide.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/token_ids.cuh>
#include <adore/policies/sentinel.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace adore::testing {
namespace {

constexpr index_t rows = 2, max_new = 3;
constexpr sentinel policy{.open = 1, .close = 2};

__global__ void write_numbers(gpu::numbered_positions<sentinel> numbers, position_t* to) {
  to[threadIdx.x] = numbers(static_cast<index_t>(threadIdx.x));
}

/// Steps of two sequences; tokens are [row, max_new].
class sequences {
 public:
  explicit sequences(scope reach)
      : books_(policy, {rows, 2, 2, 30, 64}, reach, max_new), hearing_(books_.view()) {
    for (index_t row = 0; row < rows; ++row) books_.open_async(nullptr, row);
  }
  /// @return [row, max_new] rotary positions
  std::vector<position_t> hear(std::vector<index_t> const& ids,
                               std::vector<index_t> const& counts) {
    books_.set_counts(nullptr, counts);
    ids_ = gpu::device_buffer<index_t>(ids);
    hearing_.hear_async(nullptr, books_.view(), policy, ids_.data());
    return numbers(0);
  }
  std::vector<position_t> numbers(index_t layer) const {
    gpu::device_buffer<position_t> numbers(rows * max_new);
    write_numbers<<<1, rows * max_new>>>({books_.view(), policy, layer}, numbers.data());
    gpu::check(cudaGetLastError());
    return numbers.to_host(nullptr);
  }
  void decide(index_t layer) { gpu::decide_async(nullptr, books_.view(), policy, layer, {}); }
  void end(std::vector<index_t> const& accepted) {
    gpu::device_buffer<index_t> const stay(accepted);
    hearing_.hear_accepted_async(nullptr, books_.view(), policy, ids_.data(), stay.data());
    index_t const layers = books_.view().reach == scope::model ? 1 : 2;
    for (index_t layer = 0; layer < layers; ++layer) {
      gpu::decide_async(nullptr, books_.view(), policy, layer, {.accepted = stay.data()});
    }
    gpu::advance_async(nullptr, books_.view(), stay.data());
  }
  std::vector<position_t> kept(index_t row) const {
    return books_.kept(nullptr, books_.view().lane(row, 1, 1));
  }
  /// Rotary positions of the kept tokens of a row, ascending.
  std::vector<position_t> rotary(index_t row) const {
    row_snapshot const saved = books_.snapshot(nullptr, row);
    std::vector<position_t> all(saved.rotary.begin(), saved.rotary.begin() + 30);
    std::erase(all, no_position);
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  gpu::device_ledger<sentinel> books_;
  gpu::device_hearing<sentinel> hearing_;
  gpu::device_buffer<index_t> ids_;
};

TEST_CASE("a policy hears a step's tokens, numbers them, and forgets the rejected ones") {
  for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
    CAPTURE(static_cast<int>(reach));
    sequences s(reach);
    using list = std::vector<position_t>;
    // a span and its two sentinels: they share the number of the token before them
    CHECK(s.hear({1, 5, 2, 5, 6, 7}, {3, 2}) == list{0, 0, 0, 0, 1, no_position});
    s.end({3, 2});
    CHECK(s.kept(0) == list{2});
    CHECK(s.kept(1) == list{0, 1});
    // the closing token of row 1 is rejected with the token after it
    CHECK(s.hear({5, 6, 7, 1, 2, 8}, {3, 3}) == list{1, 2, 3, 1, 1, 2});
    s.end({1, 1});
    CHECK(s.kept(0) == list{2, 3});
    CHECK(s.kept(1) == list{0, 1, 2});
    CHECK(s.hear({5, 0, 0, 9, 0, 0}, {1, 1}) == list{2, -1, -1, 2, -1, -1});
    s.end({1, 1});
    CHECK(s.kept(1) == list{0, 1, 2, 3});
    CHECK(s.rotary(0) == list{0, 1, 2});
    CHECK(s.rotary(1) == list{0, 1, 1, 2});
    // and now that the span is closed, its inside and its opening token go
    CHECK(s.hear({5, 0, 0, 2, 0, 0}, {1, 1}) == list{3, -1, -1, 2, -1, -1});
    s.end({1, 1});
    CHECK(s.kept(1) == list{0, 1, 4});
  }
}

TEST_CASE("each layer finds the numbers in its own lanes, though earlier ones have decided") {
  for (scope const reach : {scope::kv_head, scope::layer}) {
    CAPTURE(static_cast<int>(reach));
    sequences s(reach);
    using list = std::vector<position_t>;
    list const heard{0, 1, 2, 0, 0, 0};
    REQUIRE(s.hear({5, 6, 7, 1, 5, 2}, {3, 3}) == heard);
    s.decide(0);
    CHECK(s.numbers(1) == heard);
  }
}

}  // namespace
}  // namespace adore::testing
