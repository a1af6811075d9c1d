// SPDX-License-Identifier: Apache-2.0
// The clauses of stores that choose the slots themselves: room, reports, releases.
#pragma once

#include "adore/kv_cache.hpp"
#include "adore/philox.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace adore::testing {
namespace detail {

/// The cache as an engine's step sees it; looks at each slot before it passes the report on.
template <class Cache>
class placement_audit {
 public:
  placement_audit(Cache& cache, row_tokens const& row, std::string const& at)
      : cache_(cache), row_(row.row), count_(row.count), at_(at) {}
  auto const& books() const noexcept { return cache_.books(); }
  scope reach() const noexcept { return cache_.reach(); }
  auto positions() const { return cache_.positions(); }
  void placed(index_t row, index_t layer, index_t kv_head, index_t j, index_t slot) {
    kv_shape const& shape = books().shape();
    std::string const what = at_ + "placed(row " + text(row) + ", layer " + text(layer) +
                             ", kv_head " + text(kv_head) + ", j " + text(j) + ", slot " +
                             text(slot) + ")";
    require(row == row_ && layer >= 0 && layer < shape.layers && kv_head >= 0 &&
                kv_head < shape.kv_heads && j >= 0 && j < count_,
            what + " names a token that this step does not bring");
    require(slot >= 0 && slot < shape.slots,
            what + ": the lane has slots 0 to " + text(shape.slots - 1));
    auto const lane = books().lane(row, layer, kv_head);
    require(books().new_slots(lane)[static_cast<std::size_t>(j)] < 0,
            what + ": this lane's token has been reported before");
    position_t const there = books().positions(lane)[static_cast<std::size_t>(slot)];
    require(there == no_position,
            what + ": position " + text(there) + " is still there and was not released");
    cache_.placed(row, layer, kv_head, j, slot);
  }

 private:
  Cache& cache_;
  index_t row_, count_;
  std::string at_;
};

/// Lets the engine do its step and checks what the books know then.
template <class Cache, class Step>
void engine_step(Cache& cache, Step&& step, row_tokens const& row, std::string const& at) {
  auto const& books = cache.books();
  kv_shape const& shape = books.shape();
  placement_audit audit(cache, row, at);
  try {
    step(cache.store().itself(), audit, row.row, row.count);
  } catch (contract_violation const&) {
    throw;
  } catch (std::exception const& error) {
    throw contract_violation(at + "no room for " + text(row.count) + " tokens in row " +
                             text(row.row) + " (" + error.what() + "), though a lane holds " +
                             text(books.occupied(books.lane(row.row, 0, 0))) +
                             " tokens and capacity() = " + text(cache.store().capacity()) +
                             ": release must free what it counts");
  }
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    for (index_t head = 0; head < shape.kv_heads; ++head) {
      index_t const lane = books.lane(row.row, layer, head);
      auto const slots = books.new_slots(lane);
      require(std::find(slots.begin(), slots.end(), -1) == slots.end(),
              at + "the step did not report where a token of row " + text(row.row) + ", layer " +
                  text(layer) + ", kv_head " + text(head) + " is");
    }
  }
}

/// Where the store can say what it holds, it must hold what it was told.
template <class Cache>
void compare_positions(Cache& cache, std::string const& at) {
  auto& store = cache.store().itself();
  if constexpr (requires { store.position_at(0, 0, 0, 0); }) {
    kv_shape const& shape = cache.books().shape();
    for (index_t row = 0; row < shape.sequences; ++row) {
      for (index_t layer = 0; layer < shape.layers; ++layer) {
        for (index_t head = 0; head < shape.kv_heads; ++head) {
          auto const wanted = cache.books().positions(cache.books().lane(row, layer, head));
          for (index_t slot = 0; slot < shape.slots; ++slot) {
            position_t const seen = store.position_at(row, layer, head, slot);
            position_t const told = wanted[static_cast<std::size_t>(slot)];
            if (seen == told) continue;
            throw contract_violation(
                at + "slot " + text(slot) + " of row " + text(row) + ", layer " + text(layer) +
                ", kv_head " + text(head) + " holds position " + text(seen) +
                ", but by the reports and releases it must hold " + text(told));
          }
        }
      }
    }
  }
}

/// Probabilities of no model: they depend on positions alone, never on who sits in which slot, and
/// their sums are exact.
template <class Cache>
void observe_layer(Cache& cache, std::span<row_tokens const> rows, index_t layer) {
  auto const& books = cache.books();
  index_t const heads = books.shape().kv_heads;
  index_t tokens = 0;
  for (row_tokens const& row : rows) tokens += row.count;
  std::vector<float> weights;
  for (row_tokens const& row : rows) {
    for (index_t j = 0; j < row.count; ++j) {
      for (index_t head = 0; head < heads; ++head) {
        for (position_t const p : books.positions(books.lane(row.row, layer, head))) {
          position_t const own = books.next_position(row.row) + j;
          auto const pair = static_cast<std::uint64_t>(own) << 32U | static_cast<std::uint32_t>(p);
          auto const bits = philox(static_cast<std::uint32_t>(layer * heads + head), pair);
          bool const visible = p != no_position && p <= own;
          weights.push_back(visible ? static_cast<float>(bits & 15U) / 16.0F : 0.0F);
        }
      }
    }
  }
  cache.observe(layer, {weights.data(), tokens, heads, books.slots()});
}

template <class Store, class Step, class Policy>
void compare_by_store(Store made,
                      Step&& step_engine,
                      contract_setup const& setup,
                      Policy const& policy) {
  kv_shape shape = made.shape();
  auto const options = options_of<Policy, Store>(shape);
  kv_cache cache(audited_store<Store>(std::move(made)), policy, options);
  shape.channels = 1;
  kv_cache reference(host_store<float>(shape), policy, options);
  for (index_t step = 0; step < setup.steps; ++step) {
    std::string const at = std::string(Policy::name) + ", step " + text(step) + ": ";
    auto const rows = next_rows<forking_store<Store>>(cache, reference, step, setup.steps);
    compare_positions(cache, at);
    cache.begin_step(rows);
    reference.begin_step(rows);
    for (row_tokens const& row : rows) engine_step(cache, step_engine, row, at);
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      observe_layer(cache, rows, layer);
      observe_layer(reference, rows, layer);
    }
    std::vector<index_t> accepted;
    for (row_tokens const& row : rows) accepted.push_back(step % 10 == 9 ? 1 : row.count);
    cache.end_step(accepted);
    reference.end_step(accepted);
    compare_kept(cache, reference, at);
    compare_positions(cache, at);
  }
}

/// A fork lives on when the sequence that it came from is closed.
template <class Store, class Step>
void check_fork(Store made, Step&& step_engine) {
  auto options = options_of<keep_all, Store>(made.shape());
  options.reach = Store::finest_scope;
  kv_cache cache(audited_store<Store>(std::move(made)), keep_all{}, options);
  auto const step = [&](index_t row) {
    std::array<row_tokens, 1> const one{{{.row = row}}};
    cache.begin_step(one);
    engine_step(cache, step_engine, one[0], "before a fork: ");
    cache.end_step();
  };
  cache.open(0);
  for (index_t token = 0; token < cache.store().capacity() / 4; ++token) step(0);
  cache.fork(0, 1);
  compare_positions(cache, "after a fork, ");
  step(1);
  cache.close(0);
  compare_positions(cache, "after the origin of a fork was closed, ");
  step(1);
  compare_positions(cache, "after the origin of a fork was closed, ");
  cache.close(1);
  compare_positions(cache, "after a fork was closed too, ");
}

/// All of the capacity can be filled, a closed row gives all of it back, and a release of what was
/// never there frees nothing.
template <class Store, class Step>
void check_capacity(Store made, Step&& step_engine) {
  auto options = options_of<keep_all, Store>(made.shape());
  options.reach = Store::finest_scope;
  kv_cache cache(audited_store<Store>(std::move(made)), keep_all{}, options);
  scope const reach = cache.reach();
  for (index_t life = 0; life < 2; ++life) {
    cache.open(0);
    for (index_t token = 0; token < cache.store().capacity(); ++token) {
      std::array<row_tokens, 1> const row{{{.row = 0}}};
      cache.begin_step(row);
      engine_step(cache, step_engine, row[0], life == 0 ? "filling: " : "filling once more: ");
      cache.end_step();
    }
    compare_positions(cache, "full: ");
    position_t const never = cache.books().next_position(0) + 5;
    index_t freed = 0;
    try {
      freed = cache.store().itself().release({0,
                                              reach == scope::model ? -1 : 0,
                                              reach == scope::kv_head ? 0 : -1,
                                              std::span<position_t const>(&never, 1)});
    } catch (std::exception const&) {  // reporting it is as good as ignoring it
    }
    require(freed == 0,
            "release of position " + text(never) + ", which was never there, says that " +
                text(freed) + " came free");
    compare_positions(cache, "after a release of what was never there, ");
    cache.close(0);
  }
}

}  // namespace detail
}  // namespace adore::testing
