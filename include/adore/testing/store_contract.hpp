// SPDX-License-Identifier: Apache-2.0
// The conformance test of a store, for engine authors: call it with your own store from any test
// framework. It throws a sentence that names the clause which the store breaks.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/kv_cache.hpp"
#include "adore/kv_view.hpp"
#include "adore/philox.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/positions/rope.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore::testing {

/// What a store does against its contract, in one sentence.
class contract_violation : public std::logic_error {
 public:
  explicit contract_violation(std::string const& sentence)
      : std::logic_error("adore: store contract: " + sentence) {}
};

/// The cache that the test builds, and how long it runs it.
struct contract_setup {
  kv_shape shape{.sequences = 2, .layers = 2, .kv_heads = 2, .slots = 24, .channels = 8};
  index_t steps = 200;
};

namespace detail {

inline void require(bool holds, std::string const& sentence) {
  if (!holds) throw contract_violation(sentence);
}
inline std::string text(index_t number) {
  return std::to_string(number);
}

/// The store under test, with what each `release` returns looked at.
template <kv_store Store>
class audited_store {
 public:
  static constexpr scope finest_scope = Store::finest_scope;

  explicit audited_store(Store store) : store_(std::move(store)) {}
  kv_shape shape() const { return store_.shape(); }
  index_t capacity() const { return store_.capacity(); }
  index_t granule() const { return store_.granule(); }
  index_t release(released_positions const& tokens) {
    auto const told = static_cast<index_t>(tokens.positions.size());
    index_t const freed = store_.release(tokens);
    std::string const what =
        "release of " + text(told) + " tokens says that " + text(freed) + " came free";
    require(freed >= 0 && freed <= told, what);
    require(granule() > 1 || freed == told, what + ", but with granule() = 1 each must");
    return freed;
  }
  decltype(auto) keys(index_t layer) requires slot_store<Store> { return store_.keys(layer); }
  decltype(auto) values(index_t layer) requires slot_store<Store> { return store_.values(layer); }
  void fork(index_t from, index_t to) requires forking_store<Store> { store_.fork(from, to); }
  Store& itself() noexcept { return store_; }

 private:
  Store store_;
};

template <class Store>
void check_numbers(Store const& store, kv_shape const& asked) {
  kv_shape const shape = store.shape();
  require(shape.sequences == asked.sequences && shape.layers == asked.layers &&
              shape.kv_heads == asked.kv_heads && shape.channels == asked.channels,
          "shape() differs from the shape that the store was made for in more than slots");
  index_t const granule = store.granule();
  index_t const capacity = store.capacity();
  require(granule >= 1, "granule() = " + text(granule) + ", but must be at least 1");
  require(capacity >= granule && capacity <= shape.slots,
          "capacity() = " + text(capacity) + ", but a lane has " + text(shape.slots) +
              " slots and granule() = " + text(granule));
  require(capacity % granule == 0,
          "capacity() = " + text(capacity) + " is no multiple of granule() = " + text(granule));
}

template <class Policy, kv_store Store>
cache_options options_of(kv_shape const& shape) {
  cache_options options{.reach = std::min(Policy::default_scope, Store::finest_scope),
                        .max_new = 2};
  if constexpr (slot_store<Store>) {
    options.rotation = rope(shape.channels - shape.channels % 2, 1e4, rope_pairs::halves);
  } else {
    options.positions = position_scheme::original;  // the engine turns its keys itself
  }
  return options;
}

inline std::vector<float> random_floats(std::uint32_t key, index_t count) {
  std::vector<float> result;
  for (index_t i = 0; i < count; ++i) {
    auto const bits = static_cast<std::uint32_t>(philox(key, static_cast<std::uint64_t>(i)));
    result.push_back(2.0F * unit_float(bits) - 1.0F);
  }
  return result;
}

// ------------------------------------------------------------------ stores addressed by slot

/// One number in a store.
struct element {
  bool is_value;
  index_t layer, sequence, kv_head, slot, channel;
  std::string name() const {
    return std::string(is_value ? "V" : "K") + "[sequence " + text(sequence) + ", layer " +
           text(layer) + ", kv_head " + text(kv_head) + ", slot " + text(slot) + ", channel " +
           text(channel) + "]";
  }
};

inline std::string first_difference(element const& a, element const& b) {
  if (a.is_value != b.is_value) return "K and V";
  if (a.layer != b.layer) return "two layers";
  if (a.sequence != b.sequence) return "two sequences";
  if (a.kv_head != b.kv_head) return "two KV heads";
  return a.slot != b.slot ? "two slots" : "two channels";
}

/// Calls action(element, T& memory) for every number in the store.
template <class Store, class Action>
void for_elements(Store& store, Action&& action) {
  auto const visit = [&](auto view, bool is_value, index_t layer) {
    for (index_t row = 0; row < view.sequences; ++row) {
      for (index_t head = 0; head < view.kv_heads; ++head) {
        for (index_t slot = 0; slot < view.slots; ++slot) {
          for (index_t c = 0; c < view.channels; ++c) {
            action(element{is_value, layer, row, head, slot, c},
                   view(row, head, slot)[c * view.channel_stride]);
          }
        }
      }
    }
  };
  for (index_t layer = 0; layer < store.shape().layers; ++layer) {
    visit(kv_view_of(store.keys(layer)), false, layer);
    visit(kv_view_of(store.values(layer)), true, layer);
  }
}

template <class Store>
void check_views(Store& store) {
  kv_shape const shape = store.shape();
  require(store.capacity() == shape.slots,
          "capacity() = " + text(store.capacity()) + " of a store addressed by slot must be its " +
              text(shape.slots) + " slots per lane, since the plan uses all of them");
  auto const check = [&](auto view, auto again, std::string const& what) {
    require(view.sequences == shape.sequences && view.kv_heads == shape.kv_heads &&
                view.slots == shape.slots && view.channels == shape.channels,
            what + " is a view of another shape than shape()");
    require(view.data != nullptr && view.data == again.data,
            what + " must be the same memory at each call");
  };
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    std::string const of_layer = "(" + text(layer) + ")";
    check(kv_view_of(store.keys(layer)), kv_view_of(store.keys(layer)), "keys" + of_layer);
    check(kv_view_of(store.values(layer)), kv_view_of(store.values(layer)), "values" + of_layer);
  }
}

/// Says which other number changes together with `broken`.
template <class Store>
[[noreturn]] void explain(Store& store, std::size_t broken) {
  std::size_t n = 0;
  element wanted{};
  for_elements(store, [](element const&, auto& memory) { memory = {}; });
  for_elements(store, [&](element const& e, auto& memory) {
    if (n++ != broken) return;
    wanted = e;
    memory = static_cast<std::remove_reference_t<decltype(memory)>>(1.0F);
  });
  n = 0;
  for_elements(store, [&](element const& e, auto const& memory) {
    require(n++ == broken || static_cast<float>(memory) == 0.0F,
            wanted.name() + " and " + e.name() + " are one memory: " + first_difference(wanted, e) +
                " must not share any");
  });
  throw contract_violation(wanted.name() + " does not keep what is written there");
}

/// Each number is memory of its own. What is written are the base-16 digits of the number's place,
/// one digit per pass, so that element types of few bits can hold them.
template <class Store>
void check_memory(Store& store) {
  std::size_t count = 0;
  for_elements(store, [&](element const&, auto const&) { ++count; });
  for (unsigned shift = 0; shift == 0 || count >> shift > 0; shift += 4) {
    auto const digit = [shift](std::size_t n) {
      return static_cast<float>(1U + ((n >> shift) & 15U));
    };
    std::size_t n = 0;
    for_elements(store, [&](element const&, auto& memory) {
      memory = static_cast<std::remove_reference_t<decltype(memory)>>(digit(n++));
    });
    n = 0;
    std::size_t broken = count;
    for_elements(store, [&](element const&, auto const& memory) {
      if (static_cast<float>(memory) != digit(n) && broken == count) broken = n;
      ++n;
    });
    if (broken < count) explain(store, broken);
  }
}

/// What lies in the slots of living tokens is what the host store holds there.
template <class Cache, class Reference>
void compare_memory(Cache& cache, Reference& reference, std::string const& when) {
  auto const visit = [&](auto seen, auto wanted, std::string const& what, index_t layer) {
    for (index_t row = 0; row < seen.sequences; ++row) {
      for (index_t head = 0; head < seen.kv_heads; ++head) {
        auto const positions = cache.books().positions(cache.books().lane(row, layer, head));
        for (index_t slot = 0; slot < seen.slots; ++slot) {
          position_t const position = positions[static_cast<std::size_t>(slot)];
          if (position == no_position) continue;
          for (index_t c = 0; c < seen.channels; ++c) {
            require(seen(row, head, slot)[c * seen.channel_stride] ==
                        wanted(row, head, slot)[c * wanted.channel_stride],
                    when + " " + what + " of position " + text(position) + " (sequence " +
                        text(row) + ", layer " + text(layer) + ", kv_head " + text(head) +
                        ", slot " + text(slot) + ") has changed, though the token stays");
          }
        }
      }
    }
  };
  for (index_t layer = 0; layer < cache.books().shape().layers; ++layer) {
    visit(kv_view_of(cache.store().keys(layer)), reference.store().keys(layer), "K", layer);
    visit(kv_view_of(cache.store().values(layer)), reference.store().values(layer), "V", layer);
  }
}

template <class Cache, class Reference>
void compare_kept(Cache const& cache, Reference const& reference, std::string const& when) {
  kv_shape const& shape = cache.books().shape();
  for (index_t row = 0; row < shape.sequences; ++row) {
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        require(cache.kept(row, layer, head) == reference.kept(row, layer, head),
                when + " sequence " + text(row) + " keeps other tokens than on a host_store");
      }
    }
  }
}

/// The rows' life: one is there from the start, another joins as its fork, leaves and comes back.
template <bool Forks, class Cache, class Reference>
std::vector<row_tokens> next_rows(Cache& cache, Reference& reference, index_t step, index_t steps) {
  auto const both = [&](auto&& action) {
    action(cache);
    action(reference);
  };
  if (step == 0) both([](auto& c) { c.open(0, 7); });
  if (cache.books().shape().sequences > 1) {
    bool const joins = step == steps / 4;
    if constexpr (Forks) {
      if (joins) both([](auto& c) { c.fork(0, 1); });
    } else {
      if (joins) both([](auto& c) { c.open(1, 7); });
    }
    if (step == steps / 2) both([](auto& c) { c.close(1); });
    if (step == steps / 2 + 3) both([](auto& c) { c.open(1, 8); });
  }
  std::vector<row_tokens> rows{{.row = 0, .count = step % 5 == 4 ? 2 : 1}};
  if (cache.books().shape().sequences > 1 && cache.books().is_open(1)) rows.push_back({.row = 1});
  return rows;
}

/// The same steps on the store and on a host_store, compared bit by bit.
template <class MakeStore, class Policy>
void compare_by_slot(MakeStore&& make_store, contract_setup const& setup, Policy const& policy) {
  auto made = make_store(setup.shape);
  using store = decltype(made);
  using number = typename decltype(kv_view_of(made.keys(0)))::value_type;
  kv_shape const shape = made.shape();
  auto const options = options_of<Policy, store>(shape);
  kv_cache cache(audited_store<store>(std::move(made)), policy, options);
  kv_cache reference(host_store<number>(shape), policy, options);
  index_t const heads = 2 * shape.kv_heads;
  for (index_t step = 0; step < setup.steps; ++step) {
    std::string const at = std::string(Policy::name) + ", step " + text(step) + ": ";
    auto const rows = next_rows<true>(cache, reference, step, setup.steps);
    compare_memory(cache, reference, at + "before the step,");
    index_t tokens = 0;
    std::vector<index_t> accepted;
    for (row_tokens const& row : rows) {
      tokens += row.count;
      accepted.push_back(step % 10 == 9 ? 1 : row.count);
    }
    cache.begin_step(rows);
    reference.begin_step(rows);
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      auto const key = static_cast<std::uint32_t>(3 * (step * shape.layers + layer));
      auto const k = random_floats(key, tokens * shape.kv_heads * shape.channels);
      auto const v = random_floats(key + 1, tokens * shape.kv_heads * shape.channels);
      auto const q = random_floats(key + 2, tokens * heads * shape.channels);
      std::vector<float> out(q.size());
      std::vector<float> wanted(q.size());
      auto const run = [&](auto& c, std::vector<float>& to) {
        c.append(layer,
                 {k.data(), tokens, shape.kv_heads, shape.channels},
                 {v.data(), tokens, shape.kv_heads, shape.channels});
        c.attend(layer,
                 {q.data(), tokens, heads, shape.channels},
                 {to.data(), tokens, heads, shape.channels});
      };
      run(cache, out);
      run(reference, wanted);
      require(out == wanted,
              at + "attention in layer " + text(layer) + " differs from that on a host_store");
    }
    compare_memory(cache, reference, at + "before any release,");
    cache.end_step(accepted);
    reference.end_step(accepted);
    compare_memory(cache, reference, at + "after a release,");
    compare_kept(cache, reference, at);
  }
}

// ------------------------------------------------------------------ stores that choose the slots

/// The cache as an engine's step sees it; looks at each slot before it passes the report on.
template <class Cache>
class placement_audit {
 public:
  placement_audit(Cache& cache, index_t row, index_t count)
      : cache_(cache), row_(row), count_(count) {}
  auto const& books() const noexcept { return cache_.books(); }
  scope reach() const noexcept { return cache_.reach(); }
  std::vector<position_t> positions() const { return cache_.positions(); }
  void placed(index_t row, index_t layer, index_t kv_head, index_t j, index_t slot) {
    kv_shape const& shape = books().shape();
    std::string const what = "placed(row " + text(row) + ", layer " + text(layer) + ", kv_head " +
                             text(kv_head) + ", j " + text(j) + ", slot " + text(slot) + ")";
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
};

/// Lets the engine do its step and checks what the books know then.
template <class Cache, class Step>
void engine_step(Cache& cache, Step&& step, row_tokens const& row, std::string const& at) {
  auto const& books = cache.books();
  kv_shape const& shape = books.shape();
  placement_audit audit(cache, row.row, row.count);
  try {
    step(cache.store().itself(), audit, row.row, row.count);
  } catch (contract_violation const& broken) {
    throw contract_violation(at + broken.what());
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
            require(seen == told,
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

template <class MakeStore, class Step, class Policy>
void compare_by_store(MakeStore&& make_store,
                      Step&& step_engine,
                      contract_setup const& setup,
                      Policy const& policy) {
  auto made = make_store(setup.shape);
  using store = decltype(made);
  kv_shape shape = made.shape();
  auto const options = options_of<Policy, store>(shape);
  kv_cache cache(audited_store<store>(std::move(made)), policy, options);
  shape.channels = 1;
  kv_cache reference(host_store<float>(shape), policy, options);
  for (index_t step = 0; step < setup.steps; ++step) {
    std::string const at = std::string(Policy::name) + ", step " + text(step) + ": ";
    auto const rows = next_rows<forking_store<store>>(cache, reference, step, setup.steps);
    compare_positions(cache, at);
    cache.begin_step(rows);
    reference.begin_step(rows);
    for (row_tokens const& row : rows) engine_step(cache, step_engine, row, at);
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      observe_layer(cache, rows, layer);
      observe_layer(reference, rows, layer);
    }
    cache.end_step();
    reference.end_step();
    compare_kept(cache, reference, at);
    compare_positions(cache, at);
  }
}

/// All of the capacity can be filled, a closed row gives all of it back, and a release of what was
/// never there frees nothing.
template <class MakeStore, class Step>
void check_capacity(MakeStore&& make_store, Step&& step_engine, contract_setup const& setup) {
  auto made = make_store(setup.shape);
  using store = decltype(made);
  auto options = options_of<keep_all, store>(setup.shape);
  options.reach = store::finest_scope;
  kv_cache cache(audited_store<store>(std::move(made)), keep_all{}, options);
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

/// Checks a store that is addressed by slot.
///
///     TEST_CASE("my tensors are a store") {
///       adore::testing::check_store([](adore::kv_shape const& shape) {
///         return adore::view_store(my_keys(shape), my_values(shape));
///       });
///     }
///
/// The clauses: numbers and views agree; each number is memory of its own; `release` counts what
/// came free and touches no token that stays; attention and kept sets are, bit by bit, those of a
/// `host_store` with window, StreamingLLM and H2O, two sequences, a fork and rejected tokens.
///
/// @param make_store  `Store (kv_shape const&)`: a new store of that shape; it may have more slots
/// @throws contract_violation naming the first broken clause
/// @throws std::invalid_argument if the set-up is too small to tell anything
template <class MakeStore>
  requires slot_store<std::invoke_result_t<MakeStore&, kv_shape const&>>
void check_store(MakeStore make_store, contract_setup const& setup = {}) {
  require_field(setup.shape.slots >= 8, "setup.shape.slots", setup.shape.slots, "must be >= 8");
  require_field(setup.shape.channels >= 2, "setup.channels", setup.shape.channels, "must be >= 2");
  auto store = make_store(setup.shape);
  detail::check_numbers(store, setup.shape);
  detail::check_views(store);
  detail::check_memory(store);
  index_t const budget = setup.shape.slots - 2;
  detail::compare_by_slot(make_store, setup, sliding_window::of_budget(budget));
  detail::compare_by_slot(make_store, setup, streaming_llm::clamped(2, budget));
  detail::compare_by_slot(make_store, setup, h2o::of_budget(budget));
}

/// Checks a store that chooses the slots itself.
///
///     adore::testing::check_store(
///         [](adore::kv_shape const& shape) { return my_store(shape); },
///         [](my_store& store, auto& cache, adore::index_t row, adore::index_t count) {
///           for (adore::index_t j = 0; j < count; ++j) {
///             auto const position = cache.books().next_position(row) + j;
///             int const cell = store.put(row, position);     // what the engine's step does
///             cache.placed(row, 0, 0, j, cell);              // scope model: one lane per row
///           }
///         });
///
/// The clauses: `capacity()` tokens of a lane can be there at once; slots are reported once per
/// token and lane, in range and never where a token still is; `release` frees what it counts, so
/// that a later step finds room, and nothing for positions that were never there; kept sets are
/// those of a `host_store`. A store with `position_t position_at(row, layer, kv_head, slot)`
/// (`no_position`: free) is asked after each step whether it holds what it was told.
///
/// @param step  does the engine's step for `count` new tokens of a row: it calls
///              `cache.placed(row, layer, kv_head, j, slot)` for each of them in each lane, and
///              throws if there is no room. `cache` offers `placed`, `books`, `reach`, `positions`.
template <class MakeStore, class Step>
  requires(kv_store<std::invoke_result_t<MakeStore&, kv_shape const&>> &&
           !slot_store<std::invoke_result_t<MakeStore&, kv_shape const&>>)
void check_store(MakeStore make_store, Step step, contract_setup const& setup = {}) {
  auto const store = make_store(setup.shape);
  detail::check_numbers(store, setup.shape);
  detail::check_capacity(make_store, step, setup);
  // rows may share the store's room
  index_t const budget = store.capacity() / setup.shape.sequences - 2;
  require_field(budget >= 4, "setup.shape.slots", setup.shape.slots, "are too few for the test");
  detail::compare_by_store(make_store, step, setup, sliding_window::of_budget(budget));
  detail::compare_by_store(make_store, step, setup, streaming_llm::clamped(2, budget));
  detail::compare_by_store(make_store, step, setup, h2o::of_budget(budget));
}

}  // namespace adore::testing
