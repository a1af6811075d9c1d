// SPDX-License-Identifier: Apache-2.0
// A row some of whose released tokens may come back: saved and loaded, or forked, it goes on as if
// nothing had happened, bit for bit.
#include "adore/eviction/snapshot_file.hpp"
#include "adore/kv_cache.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/paged_store.hpp"
#include "deep_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace {

using namespace adore;
using namespace adore::testing;

/// Ranks by the scores that it is given.
struct by_score {
  index_t keep = 4;
  static constexpr scope default_scope = scope::model;
  struct slot_state {
    float score = 0.0F;
  };
  constexpr index_t budget() const noexcept { return keep; }
  constexpr void score(slot_state& state, float logit) const noexcept { state.score = logit; }
  constexpr float keep_priority(slot_view, lane_view, slot_state const& state) const noexcept {
    return state.score;
  }
  constexpr void validate() const {}
};

constexpr index_t count = 3, slots = 4 + 2 + count;  // R; budget, new tokens, R
constexpr kv_shape shape{.sequences = 2, .layers = 2, .kv_heads = 1, .slots = slots, .channels = 4};
deep_model const model(9, shape.layers, shape.kv_heads, shape.channels);

cache_options options_for(rebuild_options const& wanted) {
  cache_options options;
  options.reach = scope::model;
  options.max_new = 2;
  options.rebuild = wanted;
  return options;
}

/// What the engine sees of one step: the output, who was computed for it, who is there after it.
struct seen_step {
  deep_model::row out;
  std::vector<position_t> rebuilt, kept, back;
  friend bool operator==(seen_step const& a, seen_step const& b) {
    return a.out == b.out && a.rebuilt == b.rebuilt && a.kept == b.kept && a.back == b.back;
  }
};

/// Step n brings drawn ids and scores that depend on n alone; every fifth is a draft, of whose two
/// tokens one is rejected.
template <class Policy, class Store>
seen_step step(kv_cache<Store, Policy>& cache, index_t row, unsigned n) {
  std::mt19937 random(1000 + n);
  bool const draft = n % 5 == 4;
  std::vector<index_t> ids;
  for (int i = 0; i < (draft ? 2 : 1); ++i) ids.push_back(static_cast<index_t>(random() % 50));
  row_tokens given{row, static_cast<index_t>(ids.size()), ids};
  std::vector<float> scores;
  if constexpr (scores_tokens<Policy>) {
    auto const known = static_cast<std::size_t>(cache.books().next_position(row)) + ids.size();
    // now and then all tokens get new scores
    for (std::size_t i = 0; i < (n % 3 == 0 ? known : ids.size()); ++i) {
      scores.push_back(static_cast<float>(random() % 64));
    }
    given.scores = scores;
  }
  seen_step seen;
  cache.begin_step(given);
  std::vector<deep_model::row> states;
  for (index_t const id : ids) states.push_back(model.embedding(id));
  for (rebuilt_token const& back : cache.rebuilt()) {
    seen.rebuilt.push_back(back.position);
    states.push_back(model.embedding(back.id));
  }
  run_layers(model, cache, states);
  cache.end_step(1);
  seen.out = states.front();
  seen.kept = cache.kept(row);
  seen.back = cache.back(row);
  return seen;
}

/// The store's part of saving and loading: K and V of all that is in a row's slots.
template <class From, class To>
void copy_kv(From& from, index_t from_row, To& to, index_t to_row) {
  auto const here = from.books().positions(from_row);
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    for (index_t slot = 0; slot < slots; ++slot) {
      if (here[static_cast<std::size_t>(slot)] == no_position) continue;
      auto const copy = [&](auto const source, auto const target) {
        for (index_t c = 0; c < shape.channels; ++c) {
          target(to_row, 0, slot)[c] = source(from_row, 0, slot)[c];
        }
      };
      copy(from.store().keys(layer), to.store().keys(layer));
      copy(from.store().values(layer), to.store().values(layer));
    }
  }
}

template <class Store, class Policy>
void goes_on(Store const& store, Policy const& policy, rebuild_options const& wanted) {
  kv_cache whole(store, policy, options_for(wanted));
  whole.open(0, 3);
  for (unsigned n = 0; n < 14; ++n) step(whole, 0, n);
  std::stringstream file;
  save(file, whole.snapshot(0), "policy");

  kv_cache loaded(store, policy, options_for(wanted));
  loaded.restore(1, load(file, "policy", "row.adore"));  // another row of another cache
  copy_kv(whole, 0, loaded, 1);
  whole.fork(0, 1);
  CHECK(loaded.back(1) == whole.back(0));
  std::stringstream again;
  save(again, loaded.snapshot(1), "policy");
  CHECK(again.str() == file.str());
  if constexpr (slot_store<Store>) CHECK(2 * loaded.tier_bytes() == whole.tier_bytes());
  for (unsigned n = 14; n < 40; ++n) {
    CAPTURE(n);
    seen_step const expected = step(whole, 0, n);
    REQUIRE(step(loaded, 1, n) == expected);
    REQUIRE(step(whole, 1, n) == expected);
  }
}

std::vector<rebuild_options> all_options() {
  std::vector<rebuild_options> all;
  for (rebuild_schedule const& schedule :
       std::vector<rebuild_schedule>{every_step{}, on_entry{1}, on_entry{9}, every{3}, restore{}}) {
    for (auto const admit : {rebuild_admission::never, rebuild_admission::compete}) {
      for (auto const score : {rebuilt_score::frozen, rebuilt_score::accumulate}) {
        all.push_back({count, schedule, rebuild_mask::position_causal, admit, score});
      }
    }
  }
  return all;
}

TEST_CASE("a saved and loaded row goes on as the one that went on, and so does a fork") {
  for (rebuild_options const& wanted : all_options()) {
    CAPTURE(wanted.schedule.index());
    CAPTURE(std::string(word_of(wanted.admit)));
    CAPTURE(std::string(word_of(wanted.score)));
    goes_on(host_store<float>(shape), by_score{}, wanted);
    goes_on(host_store<float>(shape), h2o{2, 2}, wanted);
    goes_on(paged_store<float>(shape, {.page_size = 2}), h2o{2, 2}, wanted);
  }
}

TEST_CASE("what a smaller tier has no room for is lost when a row is loaded") {
  std::size_t const token = 2 * 2 * 4 * sizeof(float);  // K and V, 2 layers, 4 channels
  kv_cache whole(host_store<float>(shape), by_score{}, options_for({count, restore{}}));
  whole.open(0);
  for (unsigned n = 0; n < 10; ++n) step(whole, 0, n);
  REQUIRE(whole.tier_bytes() == 6 * token);
  kv_cache small(host_store<float>(shape), by_score{}, options_for({count, restore{token}}));
  small.restore(0, whole.snapshot(0));
  CHECK(small.tier_bytes() == token);
  past_snapshot const past = *small.snapshot(0).past;
  // the last release is left, which is not that of the newest token
  REQUIRE(past.tier_positions.size() == 1);
  std::vector<position_t> const all = whole.snapshot(0).past->tier_positions;
  CHECK(past.tier_positions.front() == all.back());
  CHECK(all.back() != *std::max_element(all.begin(), all.end()));
  CHECK(std::count(past.cached.begin(), past.cached.end(), std::byte{0}) == 1);
}

TEST_CASE("a snapshot that does not fit, or contradicts itself, is refused and nothing changes") {
  rebuild_options const from_tier{count, restore{}};
  kv_cache whole(host_store<float>(shape), by_score{}, options_for(from_tier));
  whole.open(0);
  for (unsigned n = 0; n < 10; ++n) step(whole, 0, n);
  row_snapshot const saved = whole.snapshot(0);
  past_snapshot const& past = *saved.past;
  REQUIRE(past.guests.size() == 3);
  REQUIRE(past.tier_positions.size() == 6);
  position_t const kept = whole.kept(0).front();
  auto const refused = [](auto& cache, row_snapshot const& row, std::string const& part) {
    std::string said;
    try {
      cache.restore(1, row);
    } catch (std::invalid_argument const& error) {
      said = error.what();
    }
    CAPTURE(said);
    CAPTURE(part);
    CHECK(said.find(part) != std::string::npos);
    CHECK(!cache.books().is_open(1));
  };
  using change = std::function<void(past_snapshot&)>;
  std::vector<std::pair<change, std::string>> const wrong{
      {[](past_snapshot& p) { p.phase = -1; }, "another number of tokens"},
      {[](past_snapshot& p) { p.ids.pop_back(); }, "another number of tokens"},
      {[](past_snapshot& p) { p.cached.push_back({}); }, "another number of tokens"},
      {[](past_snapshot& p) { p.states.pop_back(); }, "another number of tokens"},
      {[](past_snapshot& p) { p.tier.pop_back(); }, "another number of tokens"},
      {[](past_snapshot& p) { p.guest_slots.pop_back(); }, "another number of tokens"},
      {[](past_snapshot& p) { p.guests[1] = p.guests[0]; }, "twice"},
      {[](past_snapshot& p) { p.guests[1] = 10; }, "not reached"},
      {[](past_snapshot& p) { p.tier_positions[1] = p.tier_positions[0]; }, "twice"},
      {[](past_snapshot& p) { p.guest_slots[1] = p.guest_slots[0]; }, "not free"},
      {[](past_snapshot& p) { p.guest_slots[1] = slots; }, "not free"},
      {[&](past_snapshot& p) { p.guests[1] = kept; }, "contradicts itself about position"},
      {[&](past_snapshot& p) { p.cached[static_cast<std::size_t>(kept)] = {}; }, "contradicts"},
      {[](past_snapshot& p) { p.cached[9] = std::byte{2}; }, "contradicts itself about position 9"},
      {[](past_snapshot& p) {
         p.tier_positions.pop_back();
         p.tier.resize(p.tier.size() / 6 * 5);
       },
       "contradicts"}};
  for (auto const& [spoil, part] : wrong) {
    row_snapshot broken = saved;
    spoil(*broken.past);
    refused(whole, broken, part);
  }
  row_snapshot without = saved;
  without.past.reset();
  refused(whole, without, "says nothing of released tokens");
  kv_cache plain(host_store<float>(shape), by_score{}, options_for({}));
  refused(plain, saved, "in this cache none do");
  kv_cache computes(host_store<float>(shape), by_score{}, options_for({count, on_entry{1}}));
  refused(computes, saved, "in a tier, and this cache has none");
  kv_cache fewer(host_store<float>(shape), by_score{}, options_for({2, restore{}}));
  refused(fewer, saved, "has 3 released tokens back; this cache has slots for 2");
  whole.restore(1, saved);
  CHECK(whole.books().is_open(1));
}

}  // namespace
