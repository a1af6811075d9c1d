// SPDX-License-Identifier: Apache-2.0
// Keys and queries turn by the rotary position, which is not the position where a policy lets
// tokens share one.
#include "adore/attention/key_storage.hpp"

#include "adore/kv_cache.hpp"
#include "adore/policies/sentinel.hpp"
#include "adore/stores/host_store.hpp"
#include "support/tables.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t channels = 8, opening = 101, closing = 102;
std::vector<index_t> const text{1, 2, opening, 3, 4, closing, 5, opening, 6, closing, 7, 8};
position_list const rotary{0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 7};

/// Queries, keys and values of all tokens of the text, [token, channel].
struct tensors {
  std::vector<float> q, k, v;
};
tensors random_tensors() {
  std::mt19937 random(17);
  tensors all;
  for (std::vector<float>* x : {&all.q, &all.k, &all.v}) {
    for (std::size_t i = 0; i < text.size() * channels; ++i) {
      x->push_back(static_cast<float>(random() % 1024) / 256.0F - 2.0F);
    }
  }
  return all;
}

/// Outputs of the text, `step` tokens at a time, 0: a dense prompt.
std::vector<float> outputs(tensors const& all, std::optional<rope> rotation, index_t step) {
  kv_cache cache(host_store<float>({1, 1, 1, 16, channels}),
                 sentinel{.open = opening, .close = closing},
                 {.max_new = 4, .rotation = std::move(rotation)});
  cache.open(0);
  auto const end = static_cast<index_t>(text.size());
  std::vector<float> out(all.q.size());
  for (index_t begin = 0; begin < end;) {
    index_t const count = step == 0 ? end : step;
    std::span<index_t const> const ids(text.data() + begin, static_cast<std::size_t>(count));
    if (step == 0) {
      cache.begin_prompt({0, count, ids});
    } else {
      cache.begin_step(row_tokens{0, count, ids});
    }
    auto const first = cache.positions();
    CHECK(position_list(first.begin(), first.end()) ==
          position_list(rotary.begin() + begin, rotary.begin() + begin + count));
    auto const part = [&](std::vector<float> const& x) {
      return token_view<float const>(x.data() + begin * channels, count, 1, channels);
    };
    cache.append(0, part(all.k), part(all.v));
    cache.attend(
        0, part(all.q), token_view<float>(out.data() + begin * channels, count, 1, channels));
    cache.end_step();
    begin += count;
  }
  return out;
}

}  // namespace

TEST_CASE("tokens that share a rotary position are turned alike, in steps, chunks and prompts") {
  rope const rotation(channels, 100.0, rope_pairs::halves);
  tensors const all = random_tensors();
  tensors turned = all;  // by the engine, which the cache then takes as they are given
  for (std::size_t n = 0; n < text.size(); ++n) {
    for (std::vector<float>* x : {&turned.q, &turned.k}) {
      float* const token = x->data() + n * channels;
      rotation.rotate(token, token, rotation.at(rotary[n]));
    }
  }
  for (index_t const step : {1, 2, 4, 0}) {
    INFO("steps of " << step);
    CHECK(outputs(all, rotation, step) == outputs(turned, std::nullopt, step));
  }
}

}  // namespace adore::testing
