// SPDX-License-Identifier: Apache-2.0
// The edges of everything: no budget, no prompt, equal scores, odd numbers, the end of a sequence,
// calls in the wrong order.
#include "adore/kv_cache.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/sentinel.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/tova.hpp"
#include "adore/stores/host_store.hpp"
#include "support/cache_driver.hpp"
#include "support/ledger_driver.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::testing {

namespace {

/// The sentence of the exception that the action must throw.
template <class Error, class Action>
std::string sentence_of(Action&& action) {
  try {
    action();
  } catch (Error const& error) {
    return error.what();
  }
  FAIL("nothing was thrown");
  return {};
}

bool contains(std::string const& text, std::string const& part) {
  return text.find(part) != std::string::npos;
}

/// One channel of a key, value or query each.
struct one_token {
  std::vector<float> k{1.0F}, out{0.0F};
  token_view<float const> in() const { return {k.data(), 1, 1, 1}; }
  token_view<float> to() { return {out.data(), 1, 1, 1}; }
};

}  // namespace

TEST_CASE("with a budget of 0 a query attends itself and nothing stays") {
  kv_cache cache(host_store<float>({1, 1, 1, 1, 1}), h2o{.heavy = 0, .recent = 0});
  cache.open(0);
  for (float value : {2.0F, -3.0F, 5.0F}) {
    one_token token;
    token.k = {value};
    cache.begin_step();
    cache.append(0, token.in(), token.in());
    cache.attend(0, token.in(), token.to());
    cache.end_step();
    CHECK(token.out[0] == value);
    CHECK(cache.kept(0).empty());
  }
}

TEST_CASE("a store that is too small for the budget is refused") {
  auto const said = sentence_of<std::invalid_argument>([] {
    kv_cache cache(host_store<float>({1, 1, 1, 8, 1}), sliding_window{.size = 8});
  });
  CHECK(contains(said, "budget = 8"));
  CHECK(contains(said, "room for 7"));
}

TEST_CASE("prompts shorter than the budget, as long, and longer") {
  for (std::size_t n = 1; n <= 9; ++n) {
    cache_driver driver(tova{.size = 5});
    cache_driver<tova>::head_rows rows;
    for (std::size_t i = 0; i < n; ++i) {
      weight_row row;
      for (std::size_t j = 0; j <= i; ++j)
        row[static_cast<position_t>(j)] = static_cast<float>(j + 1);
      rows.push_back({row});
    }
    auto const released = driver.prompt(rows);
    CHECK(released.size() == (n > 5 ? n - 5 : 0));
    auto const end = static_cast<position_t>(n);
    CHECK(driver.kept() == from_to(n > 5 ? end - 5 : 0, end));
    // the first step after a prompt that just fits attends budget + 1 tokens and releases one
    if (n == 5) {
      CHECK(driver.attended().size() == 6);
      CHECK(driver.step_row({{0, 1.0F}, {1, 1.0F}, {2, 0.5F}, {3, 1.0F}, {4, 1.0F}, {5, 1.0F}}) ==
            position_list{2});
    }
  }
}

TEST_CASE("an empty prompt is no prompt: the first token attends itself") {
  kv_cache cache(host_store<float>({1, 1, 1, 4, 1}), sliding_window{.size = 3});
  cache.open(0);
  bool called = false;
  cache.prompt(0, {}, [&](std::span<index_t const>) { called = true; });
  CHECK_FALSE(called);
  one_token token;
  token.k = {7.0F};
  cache.begin_step();
  cache.append(0, token.in(), token.in());
  cache.attend(0, token.in(), token.to());
  cache.end_step();
  CHECK(token.out[0] == 7.0F);
}

TEST_CASE("tokens may share a rotary position; positions tell them apart") {
  kv_cache cache(
      host_store<float>({1, 1, 1, 8, 1}), sentinel{.open = 1, .close = 2}, {.max_new = 4});
  cache.open(0);
  std::vector<index_t> const ids{1, 9, 2, 1};
  row_tokens const row{0, 4, ids};
  cache.begin_step({&row, 1});
  auto const rotary = cache.positions();
  CHECK(position_list(rotary.begin(), rotary.end()) == position_list{0, 0, 0, 0});
  std::vector<float> k(4, 1.0F);
  cache.append(
      0, token_view<float const>(k.data(), 4, 1, 1), token_view<float const>(k.data(), 4, 1, 1));
  cache.end_step();
  CHECK(cache.kept(0) == position_list{2, 3});
}

TEST_CASE("of equal scores the oldest goes first") {
  ledger_driver driver(h2o{.heavy = 2, .recent = 1});
  position_list order;
  for (position_t n = 0; n < 10; ++n) {
    for (position_t const p : driver.step_blind()) order.push_back(p);
  }
  CHECK(order == from_to(0, 7));
}

TEST_CASE("NaN goes first, infinity stays") {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  float const infinity = std::numeric_limits<float>::infinity();
  ledger_driver driver(tova{.size = 3});
  driver.step_blind(3);
  CHECK(driver.step({{{0, infinity}, {1, 0.0F}, {2, nan}, {3, 0.5F}}}) == position_list{2});
  CHECK(driver.step({{{0, infinity}, {1, 0.0F}, {3, 0.5F}, {4, 0.25F}}}) == position_list{1});
  // in a heap: it must not hide behind a NaN, nor block it
  ledger_driver keys(key_norm{.size = 3});
  for (float const norm : {2.0F, nan, 1.0F}) keys.step_token({.squared_norm = norm});
  CHECK(keys.step_token({.squared_norm = 3.0F}) == position_list{1});
  CHECK(keys.step_token({.squared_norm = 0.5F}) == position_list{3});
  CHECK(keys.step_token({.squared_norm = nan}) == position_list{5});
  CHECK(keys.kept() == position_list{0, 2, 4});
}

TEST_CASE("an infinitely large key leaves even below the budget") {
  ledger_driver keys(key_norm{.size = 3});
  CHECK(keys.step_token({.squared_norm = std::numeric_limits<float>::infinity()}) ==
        position_list{0});
}

TEST_CASE("rows of different lengths release for themselves") {
  ledger<sliding_window> books({.size = 3}, {3, 1, 1, 4, 1}, scope::model, 1);
  for (index_t row = 0; row < 3; ++row) books.open(row, 0);
  for (int n = 0; n < 6; ++n) {
    for (index_t row = 0; row < 3; ++row) {
      if (n < 2 * row) continue;  // rows 1 and 2 begin later
      books.place(row, 1);
      books.commit(row, 1, nullptr);
      books.advance(row, 1);
    }
  }
  CHECK(books.kept(0) == position_list{3, 4, 5});
  CHECK(books.kept(1) == position_list{1, 2, 3});
  CHECK(books.kept(2) == position_list{0, 1});
}

TEST_CASE("a smaller budget releases at once by the same rule, a larger one brings nothing back") {
  cache_driver driver(h2o{.heavy = 3, .recent = 2});
  driver.step_row({{0, 1.0F}});
  driver.step_row({{0, 0.25F}, {1, 0.75F}});
  driver.step_row({{2, 1.0F}});
  driver.step_row({{3, 1.0F}});
  driver.step_row({{4, 1.0F}});
  driver.cache.set_budget(0, 4);
  CHECK(driver.released() == position_list{1});
  driver.cache.set_budget(0, 1);  // 0 is heavier than 2; then only the recent ones are left
  CHECK(driver.released() == position_list{2, 0, 3});
  driver.cache.set_budget(0, 5);
  CHECK(driver.released().empty());
  CHECK(driver.kept() == position_list{4});
  for (position_t n = 5; n < 9; ++n) CHECK(driver.step_row({{n, 1.0F}}).empty());
  auto const said = sentence_of<std::invalid_argument>([&] { driver.cache.set_budget(0, -1); });
  CHECK(contains(said, "budget = -1"));
  CHECK_THROWS_AS(driver.cache.set_budget(0, 48), std::invalid_argument);
}

TEST_CASE("room is made for tokens to come, and the sinks stay") {
  kv_cache cache(host_store<float>({1, 1, 1, 6, 1}),
                 streaming_llm{.sinks = 2, .window = 3},
                 {.positions = position_scheme::original});
  cache.open(0);
  auto const step = [&] {
    one_token token;
    cache.begin_step();
    cache.append(0, token.in(), token.in());
    cache.end_step();
  };
  for (int n = 0; n < 11; ++n) step();
  REQUIRE(cache.kept(0) == position_list{0, 1, 8, 9, 10});
  cache.reserve(0, 2);
  CHECK(cache.kept(0) == position_list{0, 1, 10});
  step();
  step();
  CHECK(cache.kept(0) == position_list{0, 1, 10, 11, 12});
  cache.reserve(0, 4);  // more than the window: later tokens leave one by one
  CHECK(cache.kept(0) == position_list{0, 1});
}

TEST_CASE("a sequence ends with a clear sentence") {
  cache_driver driver(sliding_window{.size = 3});
  driver.step_row({});
  row_snapshot saved = driver.cache.snapshot(0);
  driver.cache.close(0);
  saved.next = last_position - 1;
  driver.cache.restore(0, saved);
  row_tokens row{0, 1};
  for (int left = 2; left > 0; --left) {
    driver.cache.begin_step({&row, 1});
    driver.cache.end_step();
  }
  CHECK(driver.kept() == position_list{0, last_position - 1, last_position});
  CHECK(last_position == 2147483646);
  for (int attempt = 0; attempt < 2; ++attempt) {  // no step begins, so none has to be ended
    auto const said = sentence_of<std::length_error>([&] { driver.cache.begin_step({&row, 1}); });
    CHECK(contains(said, "ends at position 2^31 - 1; row 0 has seen 2147483647 tokens"));
  }
  CHECK(driver.kept() == position_list{0, last_position - 1, last_position});
  // the books alone say the same
  ledger_driver books(sliding_window{.size = 3});
  books.step_blind();
  saved = books.books.snapshot(0);
  books.books.close(0);
  saved.next = last_position - 1;
  books.books.restore(0, saved);
  CHECK_THROWS_AS(books.books.place(0, 3), std::length_error);
  books.step_blind(2);
  CHECK(books.kept() == position_list{0, last_position - 1, last_position});
  CHECK(contains(sentence_of<std::length_error>([&] { books.books.place(0, 1); }), "2^31 - 1"));
  // the cache is still in order
  driver.cache.close(0);
  driver.cache.open(0);
  driver.cache.begin_step({&row, 1});
  driver.cache.end_step();
  CHECK(driver.kept() == position_list{0});
}

TEST_CASE("a full cache that may release nothing says so") {
  kv_cache cache(host_store<float>({1, 1, 1, 2, 1}), keep_all{});
  cache.open(0);
  for (int n = 0; n < 2; ++n) {
    cache.begin_step();
    cache.end_step();
  }
  auto const said = sentence_of<std::length_error>([&] { cache.begin_step(); });
  CHECK(contains(said, "2 slots"));
  CHECK(cache.kept(0) == position_list{0, 1});
}

TEST_CASE("calls in the wrong order say what is missing") {
  one_token token;
  kv_cache cache(host_store<float>({2, 2, 1, 4, 1}), h2o{.heavy = 1, .recent = 1});
  auto const refused = [&](std::string const& part, auto&& action) {
    auto const said = sentence_of<std::logic_error>(action);
    CHECK_MESSAGE(contains(said, part), said);
  };
  row_tokens const first{0};
  row_tokens const twice[] = {{0}, {0}};
  row_tokens const many{0, 2};
  refused("open it first", [&] { cache.begin_step({&first, 1}); });
  cache.open(0);
  refused("close it first", [&] { cache.open(0); });
  refused("named twice", [&] { cache.begin_step(twice); });
  refused("max_new = 1", [&] { cache.begin_step({&many, 1}); });
  refused("no step has begun", [&] { cache.append(0, token.in(), token.in()); });
  refused("no step has begun", [&] { cache.attend(0, token.in(), token.to()); });
  refused("no step has begun", [&] { cache.observe(0, token.in()); });
  refused("no step has begun", [&] { cache.end_step(); });
  cache.begin_step();
  refused("under way", [&] { cache.begin_step(); });
  refused("under way", [&] { cache.open(1); });
  refused("under way", [&] { cache.set_budget(0, 1); });
  refused("lacks its append", [&] { cache.attend(0, token.in(), token.to()); });
  refused("layer 2 ", [&] { cache.append(2, token.in(), token.in()); });
  cache.append(0, token.in(), token.in());
  refused("already", [&] { cache.append(0, token.in(), token.in()); });
  cache.attend(0, token.in(), token.to());
  refused("already", [&] { cache.attend(0, token.in(), token.to()); });
  refused("already", [&] { cache.observe(0, token.in()); });
  refused("layer 1 was neither", [&] { cache.end_step(); });
  cache.append(1, token.in(), token.in());
  std::vector<float> wide(6);
  refused("is needed",
          [&] { cache.attend(1, token_view<float const>(wide.data(), 2, 1, 1), token.to()); });
  cache.attend(1, token.in(), token.to());
  index_t const too_many = 2;
  refused("2 of 1 tokens accepted", [&] { cache.end_step({&too_many, 1}); });
  cache.end_step();
  refused("has seen tokens", [&] { cache.begin_prompt({0, 2}); });
  refused("holds no sequence", [&] { cache.close(1); });
  refused("holds no sequence", [&] { cache.fork(1, 0); });
  refused("close it first", [&] { cache.fork(0, 0); });
}

TEST_CASE("a policy that reads tokens asks for them") {
  kv_cache cache(host_store<float>({1, 1, 1, 4, 1}), sentinel{.open = 1, .close = 2});
  cache.open(0);
  auto const said = sentence_of<std::logic_error>([&] { cache.begin_step(); });
  CHECK(contains(said, "token ids"));
}

TEST_CASE("a dense prompt that would need too much staging names the bytes") {
  kv_cache cache(
      host_store<float>({1, 2, 1, 4, 8}), sliding_window{.size = 3}, {.staging_limit_bytes = 1000});
  cache.open(0);
  // keys and values of both layers, since the lane spans them
  CHECK(cache.prompt_staging_bytes(10) == 2 * 2 * 10 * 8 * sizeof(float));
  auto const said = sentence_of<std::length_error>([&] { cache.begin_prompt({0, 10}); });
  CHECK(contains(said, "1280 bytes"));
  CHECK(contains(said, "1000"));
}

TEST_CASE("a snapshot that does not fit or contradicts itself changes nothing") {
  ledger_driver driver(h2o{.heavy = 2, .recent = 2});
  driver.step_blind(3);
  row_snapshot const saved = driver.books.snapshot(0);
  driver.books.close(0);
  auto const refuses = [&](auto&& damage) {
    row_snapshot broken = saved;
    damage(broken);
    CHECK_THROWS_AS(driver.books.restore(0, broken), std::invalid_argument);
    CHECK_FALSE(driver.books.is_open(0));
  };
  refuses([](row_snapshot& s) { s.reach = scope::model; });
  refuses([](row_snapshot& s) { s.positions.pop_back(); });
  refuses([](row_snapshot& s) { s.slot_states.pop_back(); });
  refuses([](row_snapshot& s) { s.budgets.push_back(3); });
  refuses([](row_snapshot& s) { s.budgets[0] = -1; });
  refuses([](row_snapshot& s) { s.next = 2; });
  refuses([](row_snapshot& s) { s.positions[5] = 1; });
  refuses([](row_snapshot& s) { s.positions[5] = -7; });
  driver.books.restore(0, saved);
  CHECK(driver.kept() == position_list{0, 1, 2});
  row_snapshot longer = saved;
  longer.positions.insert(longer.positions.end(), saved.budgets.size(), no_position);
  driver.books.close(0);
  auto const said = sentence_of<std::invalid_argument>([&] { driver.books.restore(0, longer); });
  auto const slots = driver.books.slots();
  CHECK(contains(said,
                 "the snapshot has " + std::to_string(slots + 1) +
                     " slots per lane, and this cache has " + std::to_string(slots)));
}

}  // namespace adore::testing
