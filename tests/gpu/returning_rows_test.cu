// SPDX-License-Identifier: Apache-2.0
// A row on the device some of whose released tokens may come back: forked, or saved and loaded, it
// goes on as if nothing had happened, and so it does from the host to the device and back.
#include "adore/eviction/snapshot_file.hpp"
#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/decode_attention.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/device_ledger.cuh"
#include "adore/gpu/device_rebuild.cuh"
#include "adore/gpu/device_store.cuh"
#include "adore/gpu/device_tier.cuh"
#include "adore/gpu/returning_rows.cuh"
#include "adore/gpu/token_scores.cuh"
#include "adore/kv_cache.hpp"
#include "adore/policies/adaptive_release.hpp"
#include "adore/policies/attentive_release.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/h2o_per_age.hpp"
#include "adore/policies/random.hpp"
#include "adore/stores/host_store.hpp"
#include "rebuild/deep_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace {

using namespace adore;
using adore::testing::deep_model;

constexpr index_t layers = 2, heads = 2, channels = 64;
constexpr index_t rows = 4, budget = 6, count = 3, slots = budget + 1 + count;
constexpr index_t longest = 64;  // sequence
constexpr kv_shape shape{rows, layers, heads, slots, channels};
constexpr unsigned split = 14, end = 40;  // steps before and after something happens
deep_model const model(11, layers, heads, channels);

/// Step n of a row brings an id and scores that depend on n alone: now and then new ones for all.
struct step_input {
  index_t id;
  std::vector<float> scores;  // of the last tokens, the new one included

  explicit step_input(unsigned n) {
    std::mt19937 random(1000 + n);
    id = static_cast<index_t>(random() % 50);
    for (unsigned i = 0; i < (n % 3 == 0 ? n + 1 : 1); ++i) {
      scores.push_back(static_cast<float>(random() % 64));
    }
  }
};

/// What the engine sees of one step: the output, who is computed for it, who is back in it, who is
/// there after it.
struct seen_step {
  deep_model::row out;
  std::vector<position_t> computed, back, kept;

  bool same_tokens(seen_step const& other) const {
    return computed == other.computed && back == other.back && kept == other.kept;
  }
  float apart(seen_step const& other) const {
    float largest = 0.0F;
    for (std::size_t i = 0; i < out.size(); ++i) {
      float const difference = std::abs(out[i] - other.out[i]);
      largest = difference <= largest ? largest : difference;  // a NaN stays
    }
    return largest;
  }
};

/// K and V of all slots of a row.
template <class From, class To>
void copy_kv(From& from, index_t from_row, To& to, index_t to_row) {
  std::size_t const bytes = std::size_t{heads} * slots * channels * sizeof(float);
  for (index_t layer = 0; layer < layers; ++layer) {
    gpu::check(cudaMemcpy(
        to.keys(layer)(to_row, 0, 0), from.keys(layer)(from_row, 0, 0), bytes, cudaMemcpyDefault));
    gpu::check(cudaMemcpy(to.values(layer)(to_row, 0, 0),
                          from.values(layer)(from_row, 0, 0),
                          bytes,
                          cudaMemcpyDefault));
  }
}

template <class P>
class device_cache {
 public:
  device_cache(P policy, rebuild_options const& wanted)
      : ledger_(policy, shape, scope::model, 1, 0, count, longest),
        store_(shape),
        rebuild_(wanted, ledger_.view()),
        ids_(static_cast<std::size_t>(rows + rebuild_.pool())),
        weights_(static_cast<std::size_t>(layers * rows * heads) *
                 static_cast<std::size_t>(ledger_.view().stride)) {
    if (auto const* const from = std::get_if<restore>(&wanted.schedule)) {
      tier_.emplace(shape, longest, from->limit_bytes);
    }
    for (index_t layer = 0; layer < layers; ++layer) {  // NaN where nobody is: it must not matter
      for (auto const& view : {store_.keys(layer), store_.values(layer)}) {
        gpu::check(cudaMemset(view.data, 0xFF, store_.allocated_bytes() / (2 * layers)));
      }
    }
  }

  gpu::device_store<float>& store() { return store_; }
  gpu::returning_rows<P> parts() { return {ledger_, rebuild_, tier_ ? &*tier_ : nullptr}; }
  void open(index_t row) { ledger_.open_async(nullptr, row, 3); }
  void fork(index_t from, index_t to) {
    parts().fork_async(nullptr, from, to);
    copy_kv(store_, from, store_, to);
  }
  row_snapshot snapshot(index_t row) { return parts().snapshot(nullptr, store_, row); }
  std::uint64_t entered() const { return rebuild_.counts(nullptr).entered; }

  /// The n-th step of each of these rows; the others wait.
  std::vector<seen_step> step(std::vector<index_t> const& taking_part, unsigned n) {
    step_input const input(n);
    std::vector<index_t> counts(std::size_t{rows}, 0);
    auto const pool = static_cast<std::size_t>(rebuild_.pool());
    std::vector<index_t> ids(rows + pool, 0);
    for (index_t const row : taking_part) {
      counts[static_cast<std::size_t>(row)] = 1;
      ids[static_cast<std::size_t>(row)] = input.id;
    }
    ledger_.set_counts(nullptr, counts);
    ids_.copy_from_async(ids, nullptr);
    if (tier_) tier_->begin_step_async(nullptr, ledger_.view());
    give_scores(taking_part, n, input.scores);
    rebuild_.begin_step_async(nullptr, ledger_.view(), ledger_.policy(), rows, ids_.data());
    ids = ids_.to_host(nullptr);

    std::vector<index_t> const of = read(rebuild_.tokens().rows, pool);
    std::vector<position_t> const positions = read(rebuild_.tokens().positions, pool);
    std::vector<position_t> const guests =
        read(rebuild_.view().guests, std::size_t{rows} * std::size_t{count});
    std::vector<deep_model::row> states(rows + pool);  // empty: nobody
    for (index_t const row : taking_part) {
      states[static_cast<std::size_t>(row)] = model.embedding(input.id);
    }
    for (std::size_t i = 0; i < pool; ++i) {
      if (of[i] >= 0) states[rows + i] = model.embedding(ids[rows + i]);
    }
    for (index_t layer = 0; layer < layers; ++layer) attend(layer, states);
    rebuild_.end_step_async(nullptr, ledger_.view());
    gpu::decide_async(nullptr,
                      ledger_.view(),
                      ledger_.policy(),
                      0,
                      {.weights = weights_.data(), .advances = true});

    std::vector<seen_step> seen;
    for (index_t const row : taking_part) {
      seen_step& one = seen.emplace_back();
      one.out = states[static_cast<std::size_t>(row)];
      for (std::size_t i = 0; i < pool; ++i) {
        if (of[i] == row) one.computed.push_back(positions[i]);
      }
      for (index_t g = row * count; g < (row + 1) * count; ++g) {
        position_t const p = guests[static_cast<std::size_t>(g)];
        if (p >= 0) one.back.push_back(p);
      }
      std::sort(one.computed.begin(), one.computed.end());
      std::sort(one.back.begin(), one.back.end());
      one.kept = ledger_.kept(nullptr, row);
    }
    return seen;
  }
  seen_step step(index_t row, unsigned n) { return step(std::vector<index_t>{row}, n).front(); }

 private:
  template <class T>
  static std::vector<T> read(T const* from, std::size_t size) {
    std::vector<T> to(size);
    if (size == 0) return to;
    gpu::check(cudaMemcpy(to.data(), from, size * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
  void give_scores(std::vector<index_t> const& taking_part,
                   unsigned n,
                   std::vector<float> const& scores) {
    if constexpr (scores_tokens<P>) {
      float* const all = ledger_.view().past.priorities;
      std::size_t const first = n + 1 - scores.size();
      for (index_t const row : taking_part) {
        gpu::check(cudaMemcpy(all + static_cast<std::size_t>(row * longest) + first,
                              scores.data(),
                              scores.size() * sizeof(float),
                              cudaMemcpyHostToDevice));
      }
      gpu::give_scores_async(
          nullptr, ledger_.view(), ledger_.policy(), gpu::scores_view{all, 1, longest}, false);
    }
  }
  void attend(index_t layer, std::vector<deep_model::row>& states) {
    auto const width = static_cast<std::size_t>(model.width());
    auto const tokens = static_cast<index_t>(states.size());
    std::vector<float> tensors[3];
    for (index_t which = 0; which < 3; ++which) {
      tensors[which].resize(states.size() * width);
      for (std::size_t i = 0; i < states.size(); ++i) {
        if (states[i].empty()) continue;
        auto const row = model.project(states[i], layer, which);
        std::copy(row.begin(),
                  row.end(),
                  tensors[which].begin() + static_cast<std::ptrdiff_t>(i * width));
      }
    }
    gpu::device_buffer<float> const q{std::span<float const>(tensors[0])};
    gpu::device_buffer<float> const k{std::span<float const>(tensors[1])};
    gpu::device_buffer<float> const v{std::span<float const>(tensors[2])};
    gpu::device_buffer<float> out(q.size());
    out.fill_async(0, nullptr);
    auto const keys = store_.keys(layer);
    auto const values = store_.values(layer);
    if (tier_) {
      tier_->move_layer_async(nullptr, rebuild_.tokens(), longest, layer, keys, values);
    }
    std::size_t const behind = std::size_t{rows} * width;
    if (rebuild_.pool() > 0) {
      gpu::append_rebuilt_async(nullptr,
                                rebuild_.tokens(),
                                keys,
                                values,
                                {k.data() + behind, rebuild_.pool(), heads, channels},
                                {v.data() + behind, rebuild_.pool(), heads, channels});
    }
    gpu::attend_args<float, kv_view<float>, gpu::rebuilt_queries> args{
        .q = {q.data(), tokens, heads, channels},
        .k = {k.data(), tokens, heads, channels},
        .v = {v.data(), tokens, heads, channels},
        .keys = keys,
        .values = values,
        .out = {out.data(), tokens, heads, channels}};
    args.layer = layer;
    args.rebuilt = rebuild_.queries();
    if constexpr (observes_attention<P>) {
      args.weights = weights_.data() + static_cast<std::size_t>(layer) * (weights_.size() / layers);
    }
    gpu::attend_async<channels, 8>(nullptr, args, ledger_.view(), ledger_.policy());
    auto const attended = out.to_host(nullptr);
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (states[i].empty()) continue;
      auto const begin = attended.begin() + static_cast<std::ptrdiff_t>(i * width);
      states[i] = deep_model::add(
          states[i], deep_model::row(begin, begin + static_cast<std::ptrdiff_t>(width)));
    }
  }

  gpu::device_ledger<P> ledger_;
  gpu::device_store<float> store_;
  gpu::device_rebuild<P> rebuild_;
  gpu::device_buffer<index_t> ids_;
  gpu::device_buffer<float> weights_;
  std::optional<gpu::device_tier<float>> tier_;
};

template <class P>
using host_cache = kv_cache<host_store<float>, P>;

template <class P>
host_cache<P> host_cache_of(P const& policy, rebuild_options const& wanted) {
  cache_options options;
  options.reach = scope::model;
  options.rebuild = wanted;
  return host_cache<P>(host_store<float>(shape), policy, options);
}

template <class P>
seen_step step(host_cache<P>& cache, index_t row, unsigned n) {
  step_input const input(n);
  row_tokens given{row, 1, {&input.id, 1}};
  if constexpr (scores_tokens<P>) given.scores = input.scores;
  seen_step seen;
  cache.begin_step(given);
  std::vector<deep_model::row> states{model.embedding(input.id)};
  for (rebuilt_token const& back : cache.rebuilt()) {
    seen.computed.push_back(back.position);
    states.push_back(model.embedding(back.id));
  }
  seen.back = cache.back(row);
  run_layers(model, cache, states);
  cache.end_step();
  seen.out = states.front();
  seen.kept = cache.kept(row);
  return seen;
}

std::string file_of(row_snapshot const& saved) {
  std::stringstream file;
  save(file, saved, "policy");
  return file.str();
}
row_snapshot row_of(std::string const& bytes) {
  std::stringstream file(bytes);
  return load(file, "policy", "row.adore");
}

adaptive_release const scored{.keep = budget, .recent = 1, .sinks = 1};
h2o const attended{.heavy = 3, .recent = 3};
constexpr std::size_t bytes_of_token = std::size_t{2} * layers * heads * channels * sizeof(float);

/// Calls `check(policy, options)` for all that the device can do.
template <class Check>
void for_all(Check&& check) {
  for (rebuild_schedule const& schedule : std::vector<rebuild_schedule>{
           every_step{}, on_entry{1}, on_entry{12}, every{3}, restore{}}) {
    CAPTURE(schedule.index());
    for (auto const admit : {rebuild_admission::never, rebuild_admission::compete}) {
      CAPTURE(std::string(word_of(admit)));
      check(scored, rebuild_options{.count = count, .schedule = schedule, .admit = admit});
    }
    check(attended, rebuild_options{.count = count, .schedule = schedule});
  }
}

TEST_CASE("a row forked in the middle of a run goes on bit for bit as the one it is a fork of") {
  auto const goes_on = [](auto const& policy, rebuild_options const& wanted) {
    device_cache cache(policy, wanted);
    cache.open(0);
    for (unsigned n = 0; n < split; ++n) cache.step(0, n);
    cache.fork(0, 2);
    for (unsigned n = split; n < end; ++n) {
      CAPTURE(n);
      seen_step const expected = cache.step(0, n);
      seen_step const seen = cache.step(2, n);
      REQUIRE(seen.same_tokens(expected));
      REQUIRE(seen.out == expected.out);
    }
    CHECK(cache.entered() > 0);
  };
  for_all(goes_on);
  // room for two tokens of each row: some are lost
  goes_on(scored, {.count = count, .schedule = restore{2 * rows * bytes_of_token}});
}

TEST_CASE("a row and its fork that step together see the same, if the pool has room for both") {
  for (rebuild_schedule const& schedule :
       std::vector<rebuild_schedule>{every_step{}, on_entry{12}, every{3}, restore{}}) {
    CAPTURE(schedule.index());
    device_cache cache(scored, {.count = count, .schedule = schedule});
    cache.open(0);
    for (unsigned n = 0; n < split; ++n) cache.step(0, n);
    cache.fork(0, 2);
    for (unsigned n = split; n < end; ++n) {
      CAPTURE(n);
      auto const seen = cache.step({0, 2}, n);
      REQUIRE(seen[1].same_tokens(seen[0]));
      REQUIRE(seen[1].out == seen[0].out);
    }
  }
}

TEST_CASE("a row that is saved and loaded goes on as the one that went on") {
  for_all([](auto const& policy, rebuild_options const& wanted) {
    device_cache whole(policy, wanted);
    whole.open(0);
    for (unsigned n = 0; n < split; ++n) whole.step(0, n);
    std::string const file = file_of(whole.snapshot(0));
    device_cache loaded(policy, wanted);
    loaded.parts().restore(nullptr, 2, row_of(file));  // another row of another cache
    copy_kv(whole.store(), 0, loaded.store(), 2);
    // who competes gets other slots than it had, so that sums are in another order
    bool const same_slots = wanted.admit == rebuild_admission::never;
    row_snapshot before = row_of(file), after = loaded.snapshot(2);
    if (!same_slots) {  // slots that come free are cleared before the next token takes them
      before.slot_states.clear();
      after.slot_states.clear();
    }
    CHECK(file_of(after) == file_of(before));
    for (unsigned n = split; n < end; ++n) {
      CAPTURE(n);
      seen_step const expected = whole.step(0, n);
      seen_step const seen = loaded.step(2, n);
      REQUIRE(seen.same_tokens(expected));
      if (same_slots) REQUIRE(seen.out == expected.out);
      REQUIRE(seen.apart(expected) < 1e-3F);
    }
  });
}

TEST_CASE("the device goes on from the host's snapshot, and the host from the device's") {
  for_all([](auto const& policy, rebuild_options const& wanted) {
    auto host = host_cache_of(policy, wanted);
    device_cache device(policy, wanted);
    host.open(0, 3);
    for (unsigned n = 0; n < split; ++n) step(host, 0, n);
    device.parts().restore(nullptr, 1, row_of(file_of(host.snapshot(0))));
    copy_kv(host.store(), 0, device.store(), 1);
    unsigned const back = split + 11;
    for (unsigned n = split; n < back; ++n) {
      CAPTURE(n);
      seen_step const expected = step(host, 0, n);
      seen_step const seen = device.step(1, n);
      REQUIRE(seen.same_tokens(expected));
      REQUIRE(seen.apart(expected) < 1e-3F);
    }
    auto again = host_cache_of(policy, wanted);
    again.restore(3, row_of(file_of(device.snapshot(1))));
    copy_kv(device.store(), 1, again.store(), 3);
    for (unsigned n = back; n < end; ++n) {
      CAPTURE(n);
      seen_step const expected = step(host, 0, n);
      seen_step const on_device = device.step(1, n);
      REQUIRE(on_device.same_tokens(expected));
      seen_step const seen = step(again, 3, n);
      REQUIRE(seen.same_tokens(expected));
      REQUIRE(seen.apart(expected) < 1e-3F);
    }
  });
}

TEST_CASE("what a smaller tier has no places for is lost when a row is loaded") {
  device_cache whole(scored, {.count = count, .schedule = restore{}});
  whole.open(0);
  for (unsigned n = 0; n < split; ++n) whole.step(0, n);
  row_snapshot const saved = whole.snapshot(0);
  std::vector<position_t> const all = saved.past->tier_positions;
  REQUIRE(all.size() == split - budget);
  device_cache small(scored, {.count = count, .schedule = restore{2 * rows * bytes_of_token}});
  small.parts().restore(nullptr, 1, saved);
  past_snapshot const past = *small.snapshot(1).past;
  CHECK(past.tier_positions == std::vector<position_t>(all.end() - 2, all.end()));
  CHECK(past.tier == std::vector<std::byte>(saved.past->tier.end() - 2 * bytes_of_token,
                                            saved.past->tier.end()));
  CHECK(std::count(past.cached.begin(), past.cached.end(), std::byte{0}) == 2);
}

template <class Call>
void refused(Call&& call, std::string const& part) {
  std::string said;
  try {
    call();
  } catch (std::logic_error const& error) {  // or invalid_argument
    said = error.what();
  }
  CAPTURE(said);
  CAPTURE(part);
  CHECK(said.find(part) != std::string::npos);
}

TEST_CASE("a snapshot that does not fit is refused and nothing changes") {
  rebuild_options const from_tier{.count = count, .schedule = restore{}};
  device_cache cache(scored, from_tier);
  cache.open(0);
  for (unsigned n = 0; n < split; ++n) cache.step(0, n);
  row_snapshot const saved = cache.snapshot(0);
  REQUIRE(saved.past->guests.size() == 3);
  auto& books = cache.parts().ledger;
  auto const kept = books.kept(nullptr, 0);
  auto const refuses = [&](row_snapshot const& wrong, std::string const& part) {
    refused([&] { cache.parts().restore(nullptr, 0, wrong); }, part);
    CHECK(books.kept(nullptr, 0) == kept);
    CHECK(file_of(cache.snapshot(0)) == file_of(saved));
  };
  row_snapshot wrong = saved;
  wrong.past.reset();
  refuses(wrong, "says nothing of released tokens");
  wrong = saved;
  wrong.past->ids.pop_back();
  refuses(wrong, "another number of tokens");
  wrong = saved;
  wrong.past->guests[1] = wrong.past->guests[0];
  refuses(wrong, "twice");
  wrong = saved;
  wrong.past->tier_positions.pop_back();
  wrong.past->tier.resize(wrong.past->tier.size() - bytes_of_token);
  refuses(wrong, "contradicts itself about position");
  refused([&] { cache.parts().restore(nullptr, rows, saved); }, "there is no such row");

  device_cache computes(scored, {.count = count, .schedule = on_entry{1}});
  refused([&] { computes.parts().restore(nullptr, 0, saved); }, "this cache has none");
  device_cache leaving(scored, {.count = count});
  row_snapshot without_tier = saved;
  without_tier.past->tier_positions.clear();
  without_tier.past->tier.clear();
  refused([&] { leaving.parts().restore(nullptr, 0, without_tier); }, "back between two steps");
}

TEST_CASE("a ledger alone neither forks nor saves nor loads a row with a past") {
  device_cache cache(scored, {.count = count});
  cache.open(0);
  cache.step(0, 0);
  auto& books = cache.parts().ledger;
  refused([&] { books.fork_async(nullptr, 0, 1); }, "use returning_rows");
  refused([&] { books.snapshot(nullptr, 0); }, "use returning_rows");
  refused([&] { books.restore(nullptr, 1, cache.snapshot(0)); }, "use returning_rows");
  gpu::device_ledger<adaptive_release> plain(scored, shape, scope::model);
  refused([&] { plain.restore(nullptr, 1, cache.snapshot(0)); }, "in this cache none do");
}

/// The parts of a cache of any policy, without steps.
template <class P>
struct idle_parts {
  explicit idle_parts(P policy, index_t past = longest)
      : ledger(policy, shape, scope::model, 1, 0, count, past),
        rebuild({.count = count}, ledger.view()) {}
  gpu::returning_rows<P> rows() { return {ledger, rebuild}; }
  gpu::device_ledger<P> ledger;
  gpu::device_rebuild<P> rebuild;
};

TEST_CASE("what the device cannot remember of released tokens is refused when a row is loaded") {
  auto const from_host = [](auto const& policy, std::string const& part) {
    auto host = host_cache_of(policy, {.count = count});
    host.open(0);
    for (unsigned n = 0; n < split; ++n) step(host, 0, n);
    idle_parts device(policy);
    refused([&] { device.rows().restore(nullptr, 0, host.snapshot(0)); }, part);
  };
  from_host(h2o_per_age{.heavy = 3, .recent = 3}, "changes with every step");
  from_host(attentive_release{.keep = budget, .recent = 1, .sinks = 1}, "more than its score");
  auto host = host_cache_of(scored, {.count = count});
  host.open(0);
  for (unsigned n = 0; n < split; ++n) step(host, 0, n);
  idle_parts brief(scored, static_cast<index_t>(split) - 1);
  refused([&] { brief.rows().restore(nullptr, 0, host.snapshot(0)); },
          "make the past of the ledger longer");
}

TEST_CASE("priorities that are of the moment of release are refused when a row is saved") {
  random_victim const policy{.size = budget};
  idle_parts device(policy);
  gpu::device_store<float> store(shape);
  gpu::device_buffer<index_t> ids(std::size_t{rows} * (1 + count));
  ids.fill_async(0, nullptr);
  device.ledger.open_async(nullptr, 0);
  for (index_t n = 0; n <= budget + 1; ++n) {
    if (n == budget) CHECK(device.rows().snapshot(nullptr, store, 0).past->ids.size() == budget);
    device.rebuild.begin_step_async(nullptr, device.ledger.view(), policy, rows, ids.data());
    gpu::decide_async(nullptr, device.ledger.view(), policy, 0, {.advances = true});
  }
  refused([&] { device.rows().snapshot(nullptr, store, 0); }, "forked, not saved");
}

}  // namespace
