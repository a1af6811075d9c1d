// SPDX-License-Identifier: Apache-2.0
// The clauses of stores addressed by slot: memory of their own, and steps that equal a
// host_store's.
#pragma once

#include "adore/kv_cache.hpp"
#include "adore/kv_view.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore::testing {
namespace detail {

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
    require(view(0, 0, 0) != nullptr && view(0, 0, 0) == again(0, 0, 0),
            what + " must be the same memory at each call");
  };
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    std::string const of_layer = "(" + text(layer) + ")";
    check(kv_view_of(store.keys(layer)), kv_view_of(store.keys(layer)), "keys" + of_layer);
    check(kv_view_of(store.values(layer)), kv_view_of(store.values(layer)), "values" + of_layer);
  }
}

/// Gives every slot its memory, in a store in pages.
template <class Store>
void reserve_all(Store& store) {
  if constexpr (paging_store<Store>) {
    std::vector<index_t> slots;
    for (index_t slot = 0; slot < store.shape().slots; ++slot) slots.push_back(slot);
    for (index_t row = 0; row < store.shape().sequences; ++row) {
      try {
        store.reserve(row, -1, -1, slots);
      } catch (std::length_error const& error) {
        throw contract_violation(
            "there are too few pages for all rows at once, which the test fills (" +
            std::string(error.what()) + ")");
      }
    }
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
    if (n++ == broken || static_cast<float>(memory) == 0.0F) return;
    throw contract_violation(wanted.name() + " and " + e.name() + " are one memory: " +
                             first_difference(wanted, e) + " must not share any");
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

/// What lies in the slots of living tokens is what the host store holds of them, perhaps in others.
template <class Cache, class Reference>
void compare_memory(Cache& cache, Reference& reference, std::string const& when) {
  auto const visit = [&](auto seen, auto wanted, std::string const& what, index_t layer) {
    for (index_t row = 0; row < seen.sequences; ++row) {
      for (index_t head = 0; head < seen.kv_heads; ++head) {
        auto const positions = cache.books().positions(cache.books().lane(row, layer, head));
        auto const there = reference.books().positions(cache.books().lane(row, layer, head));
        for (index_t slot = 0; slot < seen.slots; ++slot) {
          position_t const position = positions[static_cast<std::size_t>(slot)];
          if (position == no_position) continue;
          auto const same =
              static_cast<index_t>(std::find(there.begin(), there.end(), position) - there.begin());
          if (same == wanted.slots) continue;  // `compare_kept` says so
          for (index_t c = 0; c < seen.channels; ++c) {
            if (seen(row, head, slot)[c * seen.channel_stride] ==
                wanted(row, head, same)[c * wanted.channel_stride]) {
              continue;  // the sentence would cost more than the comparison
            }
            throw contract_violation(when + " " + what + " of position " + text(position) +
                                     " (sequence " + text(row) + ", layer " + text(layer) +
                                     ", kv_head " + text(head) + ", slot " + text(slot) +
                                     ") has changed, though the token stays");
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

/// The same steps on the store and on a host_store, compared bit by bit.
template <class Store, class Policy>
void compare_by_slot(Store made, contract_setup const& setup, Policy const& policy) {
  using number = typename decltype(kv_view_of(made.keys(0)))::value_type;
  kv_shape const shape = made.shape();
  auto const options = options_of<Policy, Store>(shape);
  kv_cache cache(audited_store<Store>(std::move(made)), policy, options);
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

}  // namespace detail
}  // namespace adore::testing
