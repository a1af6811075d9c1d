// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer's masks against their tables and formulas.
#include "adore/policies/sparse_transformer.hpp"

#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cstddef>

namespace adore::testing {

namespace {

/// Keys that query i sees in a head.
position_list seen(sparse_transformer const& policy, position_t i, head_view head) {
  position_list keys;
  for (position_t j = 0; j <= i; ++j) {
    if (policy.sees({i, i}, {}, {j, j}, {}, head)) keys.push_back(j);
  }
  return keys;
}

head_view constexpr first{.layer = 0, .head = 0, .heads = 2};
head_view constexpr second{.layer = 0, .head = 1, .heads = 2};

}  // namespace

TEST_CASE("both factors of the strided pattern, as in the paper and as in its code") {
  table const paper = lists(
      "0 | 0 1 | 0 1 2 | 0 1 2 3 | 1 2 3 4 | 2 3 4 5 | 3 4 5 6 | 4 5 6 7 | 5 6 7 8 | 6 7 8 9");
  table const code =
      lists("0 | 0 1 | 0 1 2 | 1 2 3 | 2 3 4 | 3 4 5 | 4 5 6 | 5 6 7 | 6 7 8 | 7 8 9");
  table const far = lists("0 | 1 | 2 | 0 3 | 1 4 | 2 5 | 0 3 6 | 1 4 7 | 2 5 8 | 0 3 6 9");
  sparse_transformer const by_code{.stride = 3};
  sparse_transformer const by_paper{.stride = 3, .local = local_span::paper};
  for (position_t i = 0; i < 10; ++i) {
    auto const at = static_cast<std::size_t>(i);
    CHECK(seen(by_code, i, first) == code[at]);
    CHECK(seen(by_paper, i, first) == paper[at]);
    CHECK(seen(by_code, i, second) == far[at]);
    CHECK(seen(by_paper, i, second) == far[at]);
  }
}

TEST_CASE("all patterns equal their formulas") {
  for (index_t l = 1; l <= 8; ++l) {
    for (position_t i = 0; i < 64; ++i) {
      for (position_t j = 0; j <= i; ++j) {
        slot_view const query{i, i};
        slot_view const key{j, j};
        sparse_transformer policy{.stride = l};
        auto const sees = [&](head_view head) { return policy.sees(query, {}, key, {}, head); };
        bool const near = i - j < l;
        bool const far = (i - j) % l == 0;
        CHECK(sees(first) == near);
        CHECK(sees(second) == far);
        policy.local = local_span::paper;
        CHECK(sees(first) == (i - j <= l));
        policy.local = local_span::code;
        policy.heads = sparse_heads::merged;
        CHECK(sees(first) == (near || far));
        CHECK(sees(second) == (near || far));
        policy.heads = sparse_heads::interleaved;
        CHECK(sees(second) == near);  // layer 0
        CHECK(sees({.layer = 1, .head = 0, .heads = 2}) == far);
        policy.heads = sparse_heads::split;
        policy.pattern = sparse_pattern::fixed;
        for (policy.summary = 1; policy.summary <= l; ++policy.summary) {
          CHECK(sees(first) == (j / l == i / l));
          CHECK(sees(second) == (j == i || j % l >= l - policy.summary));
        }
      }
    }
  }
}

TEST_CASE("nothing is released under a mask whose every token comes back") {
  ledger_driver driver(sparse_transformer{.stride = 3});
  for (position_t n = 0; n < 40; ++n) CHECK(driver.step_blind().empty());
}

}  // namespace adore::testing
