// SPDX-License-Identifier: Apache-2.0
// A store that chooses slots itself: scores reach new tokens when it has placed them, and the same
// tokens come back as in a store addressed by slot.
#include "adore/kv_cache.hpp"
#include "adore/policies/adaptive_release.hpp"
#include "adore/policies/attentive_release.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/stores/host_store.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace adore;

constexpr index_t slots = 24;
constexpr kv_shape shape{.sequences = 2, .layers = 2, .kv_heads = 1, .slots = slots, .channels = 1};

/// An engine's cells of which nothing is known but how many there are.
struct cells {
  static constexpr scope finest_scope = scope::model;
  kv_shape shape() const { return ::shape; }
  index_t capacity() const { return slots; }
  index_t granule() const { return 1; }
  index_t release(released_positions const& tokens) {
    return static_cast<index_t>(tokens.positions.size());
  }
};

cache_options options_with(index_t rebuilt, index_t max_new) {
  cache_options options;
  options.reach = scope::model;
  options.max_new = max_new;
  options.rebuild.count = rebuilt;
  return options;
}

/// New tokens go to the last free slots, so that the order of slots says nothing.
template <class Cache>
void place_last(Cache& cache, row_tokens const& row) {
  auto const there = cache.books().positions(cache.books().lane(row.row, 0, 0));
  index_t slot = slots - 1;
  for (index_t j = 0; j < row.count; ++j) {
    while (there[static_cast<std::size_t>(slot)] != no_position) --slot;
    cache.placed(row.row, 0, 0, j, slot);
  }
}

/// Weights that depend on positions alone.
template <class Cache>
void observe(Cache& cache, std::vector<row_tokens> const& rows) {
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<float> weights;
    index_t tokens = 0;
    for (row_tokens const& row : rows) {
      for (index_t j = 0; j < row.count; ++j, ++tokens) {
        position_t const own = cache.books().next_position(row.row) + j;
        for (position_t const p : cache.books().positions(cache.books().lane(row.row, 0, 0))) {
          bool const seen = p != no_position && !is_guest(p) && p <= own;
          weights.push_back(seen ? static_cast<float>((own * 7 + p * 13 + layer) % 16) / 16.0F
                                 : 0.0F);
        }
      }
    }
    cache.observe(layer, {weights.data(), tokens, 1, slots});
  }
}

using back_t = std::vector<std::pair<position_t, index_t>>;  // position, id
template <class Cache>
back_t back_in(Cache const& cache) {
  back_t all;
  for (rebuilt_token const& one : cache.rebuilt()) all.emplace_back(one.position, one.id);
  return all;
}

/// Random scores for two rows of unequal chunks: for all tokens (`rescores`) or the new ones alone.
template <class Policy>
void compare(Policy const& policy, index_t rebuilt, bool rescores) {
  kv_cache reference(host_store<float>(shape), policy, options_with(rebuilt, 3));
  kv_cache cache(cells{}, policy, options_with(rebuilt, 3));
  std::mt19937 random(7);
  std::uniform_int_distribution<index_t> counts(1, 3);
  std::normal_distribution<float> scores;
  for (index_t row = 0; row < 2; ++row) {
    reference.open(row, 1);
    cache.open(row, 1);
  }
  std::size_t came_back = 0;
  for (int step = 0; step < 60; ++step) {
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<index_t>> ids;
    std::vector<row_tokens> rows;
    for (index_t row = 0; row < 2; ++row) {
      index_t const count = counts(random);
      index_t const scored = rescores ? cache.books().next_position(row) + count : count;
      logits.emplace_back();
      for (index_t i = 0; i < scored; ++i) logits.back().push_back(scores(random));
      ids.emplace_back();
      for (index_t j = 0; j < count; ++j) ids.back().push_back(static_cast<index_t>(random() % 99));
      rows.push_back({row, count, ids.back()});
      if constexpr (scores_tokens<Policy>) rows.back().scores = logits.back();
    }
    reference.begin_step(rows);
    cache.begin_step(rows);
    REQUIRE(back_in(cache) == back_in(reference));
    came_back += cache.rebuilt().size();
    for (row_tokens const& row : rows) place_last(cache, row);
    observe(reference, rows);
    observe(cache, rows);
    reference.end_step();
    cache.end_step();
    for (index_t row = 0; row < 2; ++row) {
      REQUIRE(cache.kept(row) == reference.kept(row));
      CHECK(cache.back(row).empty());
    }
  }
  CHECK(cache.rebuild_cost().computed == came_back);
  CHECK((came_back > 0) == (rebuilt > 0));
}

std::string complaint_about(rebuild_options const& wanted) {
  cache_options options = options_with(2, 1);
  options.rebuild = wanted;
  try {
    kv_cache const cache(cells{}, h2o{.heavy = 4, .recent = 4}, options);
  } catch (std::invalid_argument const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("scores reach new tokens that a store has placed") {
  adaptive_release const policy{.keep = 9, .recent = 3, .sinks = 1};
  compare(policy, 0, false);
  compare(policy, 0, true);
  compare(adaptive_release{.keep = 9, .recent = 0, .sinks = 1}, 0, true);  // newcomers may go
  compare(attentive_release{.keep = 9, .recent = 3, .sinks = 1}, 0, false);
}

TEST_CASE("the same tokens come back beside a store that chooses slots itself") {
  adaptive_release const policy{.keep = 9, .recent = 3, .sinks = 1};
  for (index_t const rebuilt : {1, 4}) {
    compare(policy, rebuilt, false);
    compare(policy, rebuilt, true);
    compare(h2o{.heavy = 5, .recent = 4}, rebuilt, false);
  }
}

TEST_CASE("what needs slots of the books is refused beside such a store") {
  auto const says = [](rebuild_options const& wanted, char const* part) {
    return complaint_about(wanted).find(part) != std::string::npos;
  };
  CHECK(complaint_about({.count = 2}) == "");
  CHECK(says({.count = 2, .schedule = on_entry{}}, "the schedule must be every_step"));
  CHECK(says({.count = 2, .schedule = restore{}}, "the schedule must be every_step"));
  CHECK(says({.count = 2, .admit = rebuild_admission::compete}, "admit must be never"));
  CHECK(says({.count = 2, .score = rebuilt_score::accumulate}, "score must be frozen"));
}
