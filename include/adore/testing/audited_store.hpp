// SPDX-License-Identifier: Apache-2.0
// What the conformance tests of all stores share: the sentence, the set-up, a store whose releases
// are looked at, and the life of the sequences.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/philox.hpp"
#include "adore/positions/rope.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
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
    index_t before = 0;
    if constexpr (paging_store<Store>) before = store_.free_pages();
    index_t const freed = store_.release(tokens);
    bool const slots_alone = told == 0 && !tokens.slots.empty();
    std::string const what =
        "release of " +
        (slots_alone ? text(static_cast<index_t>(tokens.slots.size())) + " slots"
                     : text(told) + " tokens") +
        " says that " + text(freed) + " came free";
    require(freed >= 0, what);
    if constexpr (paging_store<Store>) {
      index_t const pages = store_.free_pages() - before;
      require(freed == pages * granule(),
              what + ", but of free pages there are " + text(pages) + " more, of " +
                  text(granule()) + " slots each");
    } else {
      require(granule() > 1 || freed == told, what + ", but with granule() = 1 each must");
      require(freed % granule() == 0,
              what + ", but tokens come free by whole pages of granule() = " + text(granule()));
    }
    return freed;
  }
  decltype(auto) keys(index_t layer) requires slot_store<Store> { return store_.keys(layer); }
  decltype(auto) values(index_t layer) requires slot_store<Store> { return store_.values(layer); }
  void fork(index_t from, index_t to) requires forking_store<Store> { store_.fork(from, to); }
  void reserve(index_t row,
               index_t layer,
               index_t kv_head,
               std::span<index_t const> slots) requires paging_store<Store> {
    store_.reserve(row, layer, kv_head, slots);
  }
  bool owns(index_t row, index_t slot) const requires paging_store<Store> {
    return store_.owns(row, slot);
  }
  index_t free_pages() const requires paging_store<Store> { return store_.free_pages(); }
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

}  // namespace detail

}  // namespace adore::testing
