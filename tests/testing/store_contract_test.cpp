// SPDX-License-Identifier: Apache-2.0
// Stores of all kinds keep the contract, and stores with one fault each are named by their fault.
#include "adore/testing/store_contract.hpp"

#include "adore/stores/host_store.hpp"
#include "adore/stores/view_store.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using adore::index_t;
using adore::kv_shape;
using adore::position_t;
using adore::stride_t;
using adore::testing::check_store;
using adore::testing::contract_violation;

namespace {

/// What check_store says about a store, empty if nothing.
template <class... Arguments>
std::string complaint(Arguments&&... arguments) {
  try {
    check_store(std::forward<Arguments>(arguments)...);
  } catch (contract_violation const& broken) {
    return broken.what();
  }
  return "";
}
void check_contains(std::string const& text, std::string const& part) {
  CAPTURE(text);
  CAPTURE(part);
  CHECK(text.find(part) != std::string::npos);
}

// ------------------------------------------------------------------ an engine's tensors

/// Shared memory and a view of it, as engines have them; the library has never seen this class.
struct tensor {
  std::shared_ptr<std::vector<float>> memory;
  adore::kv_view<float> as_view;
};
adore::kv_view<float> adore_kv_view(tensor const& t) {
  return t.as_view;
}

/// Strides in elements [sequence, kv_head, slot, channel].
using layout = std::array<stride_t, 4>;

tensor make_tensor(kv_shape const& s, layout const& strides) {
  auto memory = std::make_shared<std::vector<float>>(
      static_cast<std::size_t>(s.sequences * s.kv_heads * s.slots * s.channels));
  adore::kv_view<float> const view(*memory, s.sequences, s.kv_heads, s.slots, s.channels, strides);
  return {memory, view};
}
layout contiguous(kv_shape const& s) {
  stride_t const head = stride_t{s.slots} * s.channels;
  return {s.kv_heads * head, head, s.channels, 1};
}
/// V as llama.cpp keeps it without flash attention: a channel's slots lie together.
layout transposed(kv_shape const& s) {
  stride_t const head = stride_t{s.slots} * s.channels;
  return {s.kv_heads * head, head, 1, s.slots};
}
/// [slot, sequence, kv_head, channel]: heads of a token lie together, sequences between slots.
layout token_major(kv_shape const& s) {
  stride_t const token = stride_t{s.kv_heads} * s.channels;
  return {token, s.channels, s.sequences * token, 1};
}

template <class KeyLayout, class ValueLayout>
auto tensors(KeyLayout key_layout, ValueLayout value_layout) {
  return [=](kv_shape const& s) {
    std::vector<tensor> keys;
    std::vector<tensor> values;
    for (index_t layer = 0; layer < s.layers; ++layer) {
      keys.push_back(make_tensor(s, key_layout(s)));
      values.push_back(make_tensor(s, value_layout(s)));
    }
    return adore::view_store(std::move(keys), std::move(values));
  };
}

// ------------------------------------------------------------------ an engine's own view

/// Another type than `kv_view`: the last slot lies first.
struct reversed_view {
  using value_type = float;
  static constexpr stride_t channel_stride = 1;
  float* first;
  index_t sequences, kv_heads, slots, channels;
  float* operator()(index_t sequence, index_t kv_head, index_t slot) const {
    return first + ((sequence * kv_heads + kv_head) * slots + (slots - 1 - slot)) * channels;
  }
};
static_assert(adore::slot_addressed<reversed_view>);

class reversed_store {
 public:
  static constexpr adore::scope finest_scope = adore::scope::kv_head;

  explicit reversed_store(kv_shape const& shape)
      : shape_(shape),
        layer_(static_cast<std::size_t>(shape.sequences * shape.kv_heads * shape.slots *
                                        shape.channels)),
        keys_(layer_ * static_cast<std::size_t>(shape.layers)),
        values_(keys_.size()) {}
  kv_shape shape() const { return shape_; }
  index_t capacity() const { return shape_.slots; }
  index_t granule() const { return 1; }
  index_t release(adore::released_positions const& tokens) {
    return static_cast<index_t>(tokens.positions.size());
  }
  reversed_view keys(index_t layer) { return view(keys_, layer); }
  reversed_view values(index_t layer) { return view(values_, layer); }

 private:
  reversed_view view(std::vector<float>& data, index_t layer) {
    return {data.data() + layer_ * static_cast<std::size_t>(layer),
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels};
  }

  kv_shape shape_;
  std::size_t layer_;  // elements
  std::vector<float> keys_, values_;
};

// ------------------------------------------------------------------ a store that places itself

enum class fault {
  none,
  frees_the_wrong_cell,
  counts_but_does_not_free,
  counts_too_many,
  capacity_too_large,
  frees_cells_it_never_had,
  reports_too_late_a_slot,
  reports_once_for_two,
  keeps_rejected_tokens,
  fork_goes_with_its_origin,
  frees_less_than_a_page,
};

/// Cells that all rows share, each with a position and its rows, like llama.cpp's; a new token goes
/// into the lowest free cell. Scope model: all layers and heads together.
class cells {
 public:
  static constexpr adore::scope finest_scope = adore::scope::model;

  cells(kv_shape const& shape, fault bug)
      : shape_(shape),
        bug_(bug),
        cells_(static_cast<std::size_t>(shape.slots - (bug == fault::capacity_too_large ? 1 : 0))) {
  }

  kv_shape shape() const { return shape_; }
  index_t capacity() const { return shape_.slots; }
  index_t granule() const { return bug_ == fault::frees_less_than_a_page ? 4 : 1; }
  index_t release(adore::released_positions const& tokens) {
    index_t freed = 0;
    auto const held = std::count_if(
        cells_.begin(), cells_.end(), [&](cell const& c) { return c.rows[at(tokens.row)]; });
    bool const whole_row = held == static_cast<std::ptrdiff_t>(tokens.positions.size());
    if (bug_ == fault::fork_goes_with_its_origin && whole_row && tokens.row == 0) {
      for (cell& c : cells_) c.rows[1] = c.rows[1] && !c.rows[0];
    }
    for (position_t const p : tokens.positions) {
      if (bug_ == fault::keeps_rejected_tokens && p == newest(tokens.row) && !whole_row) {
        ++freed;
        continue;
      }
      auto const found = std::find_if(cells_.begin(), cells_.end(), [&](cell const& c) {
        return c.rows[at(tokens.row)] && c.position == p;
      });
      if (found == cells_.end()) {
        freed += bug_ == fault::frees_cells_it_never_had ? 1 : 0;
        continue;
      }
      ++freed;
      if (bug_ == fault::counts_but_does_not_free) continue;
      bool const wrong = bug_ == fault::frees_the_wrong_cell && found + 1 != cells_.end();
      (wrong ? found + 1 : found)->rows[at(tokens.row)] = false;
    }
    if (bug_ == fault::frees_the_wrong_cell) return static_cast<index_t>(tokens.positions.size());
    return freed + (bug_ == fault::counts_too_many ? 1 : 0);
  }
  void fork(index_t from, index_t to) {
    for (cell& c : cells_) c.rows[at(to)] = c.rows[at(from)];
  }
  position_t position_at(index_t row, index_t, index_t, index_t slot) const {
    if (at(slot) >= cells_.size()) return adore::no_position;
    cell const& c = cells_[at(slot)];
    return c.rows[at(row)] ? c.position : adore::no_position;
  }

  /// The engine's step for one token; throws if all cells are taken.
  index_t put(index_t row, position_t position) {
    auto const free = std::find_if(
        cells_.begin(), cells_.end(), [](cell const& c) { return !c.rows[0] && !c.rows[1]; });
    if (free == cells_.end()) throw std::runtime_error("all cells are taken");
    free->position = position;
    free->rows[at(row)] = true;
    auto const slot = static_cast<index_t>(free - cells_.begin());
    return bug_ == fault::reports_too_late_a_slot ? slot + shape_.slots : slot;
  }
  fault bug() const { return bug_; }

 private:
  struct cell {
    position_t position = adore::no_position;
    std::array<bool, 2> rows{};
  };
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  position_t newest(index_t row) const {
    position_t result = adore::no_position;
    for (cell const& c : cells_) {
      if (c.rows[at(row)]) result = std::max(result, c.position);
    }
    return result;
  }

  kv_shape shape_;
  fault bug_;
  std::vector<cell> cells_;
};

/// The same without a way to ask what is where.
struct silent_cells {
  static constexpr adore::scope finest_scope = adore::scope::model;
  cells inner;
  kv_shape shape() const { return inner.shape(); }
  index_t capacity() const { return inner.capacity(); }
  index_t granule() const { return inner.granule(); }
  index_t release(adore::released_positions const& tokens) { return inner.release(tokens); }
  index_t put(index_t row, position_t position) { return inner.put(row, position); }
  fault bug() const { return inner.bug(); }
};

auto cells_with(fault bug) {
  return [bug](kv_shape const& shape) { return cells(shape, bug); };
}
auto silent_cells_with(fault bug) {
  return [bug](kv_shape const& shape) { return silent_cells{cells(shape, bug)}; };
}
auto const cells_step = [](auto& store, auto& cache, index_t row, index_t count) {
  for (index_t j = 0; j < count; ++j) {
    index_t const slot = store.put(row, cache.books().next_position(row) + j);
    if (store.bug() == fault::reports_once_for_two && j == 1) continue;
    cache.placed(row, 0, 0, j, slot);
  }
};

// ------------------------------------------------------------------ slot stores with a fault

enum class slip {
  none,
  heads_share,
  keys_are_values,
  one_layer_for_all,
  slots_overlap,
  sequences_overlap,
  one_slot_too_few,
  one_too_much,
  one_too_little,
  forgets_one,
  clears_by_position,
};

/// A host_store whose views or numbers a slip has got at.
class faulty_store {
 public:
  static constexpr adore::scope finest_scope = adore::scope::kv_head;

  faulty_store(kv_shape const& shape, slip bug) : store_(shape), bug_(bug) {}
  kv_shape shape() const { return store_.shape(); }
  index_t granule() const { return 1; }
  index_t capacity() const {
    return store_.capacity() + (bug_ == slip::one_too_much ? 1 : 0) -
           (bug_ == slip::one_too_little ? 1 : 0);
  }
  index_t release(adore::released_positions const& tokens) {
    if (bug_ == slip::clears_by_position) {  // takes a position for a slot
      for (position_t const p : tokens.positions) {
        auto const keys = store_.keys(0);
        *keys(tokens.row, 0, p % keys.slots) = 99.0F;
      }
    }
    return store_.release(tokens) - (bug_ == slip::forgets_one ? 1 : 0);
  }
  adore::kv_view<float> keys(index_t layer) {
    return slipped(store_.keys(bug_ == slip::one_layer_for_all ? 0 : layer));
  }
  adore::kv_view<float> values(index_t layer) {
    if (bug_ == slip::keys_are_values) return keys(layer);
    auto view = slipped(store_.values(bug_ == slip::one_layer_for_all ? 0 : layer));
    if (bug_ == slip::one_slot_too_few) --view.slots;
    return view;
  }

 private:
  adore::kv_view<float> slipped(adore::kv_view<float> view) const {
    if (bug_ == slip::heads_share) view.kv_head_stride = 0;
    if (bug_ == slip::slots_overlap) --view.slot_stride;
    if (bug_ == slip::sequences_overlap) view.sequence_stride = view.slot_stride;
    return view;
  }

  adore::host_store<float> store_;
  slip bug_;
};

auto store_with(slip bug) {
  return [bug](kv_shape const& shape) { return faulty_store(shape, bug); };
}
std::string complaint_about(slip bug) {
  return complaint(store_with(bug));
}

}  // namespace

TEST_CASE("store contract: host_store keeps it") {
  check_store([](kv_shape const& shape) { return adore::host_store<float>(shape); });
  check_store([](kv_shape const& shape) { return adore::host_store<_Float16>(shape); });
  // many numbers, one layer, one sequence, odd sizes
  check_store([](kv_shape const& shape) { return adore::host_store<float>(shape); },
              {.shape = {1, 1, 3, 70, 33}, .steps = 80});
}

TEST_CASE("store contract: tensors of any layout keep it") {
  check_store(tensors(contiguous, contiguous));
  check_store(tensors(contiguous, transposed));
  check_store(tensors(token_major, transposed));
  check_store(store_with(slip::none));
}

TEST_CASE("store contract: a plain view over one allocation of the engine keeps it") {
  std::vector<float> memory;  // [K and V, layer, sequence, kv_head, slot, channel]
  check_store([&memory](kv_shape const& s) {
    auto const layer_size =
        static_cast<std::size_t>(s.sequences * s.kv_heads * s.slots * s.channels);
    memory.resize(2 * static_cast<std::size_t>(s.layers) * layer_size);
    std::vector<adore::kv_view<float>> keys;
    std::vector<adore::kv_view<float>> values;
    for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(s.layers); ++i) {
      (i % 2 == 0 ? keys : values)
          .emplace_back(
              memory.data() + i * layer_size, s.sequences, s.kv_heads, s.slots, s.channels);
    }
    return adore::view_store(std::move(keys), std::move(values));
  });
}

TEST_CASE("store contract: a view of the engine's own, which is no kv_view, keeps it") {
  check_store([](kv_shape const& shape) { return reversed_store(shape); });
}

TEST_CASE("store contract: cells that place tokens themselves keep it") {
  check_store(cells_with(fault::none), cells_step);
  check_store(silent_cells_with(fault::none), cells_step);
}

TEST_CASE("store contract: memory that two places share is named") {
  check_contains(complaint_about(slip::heads_share),
                 "K[sequence 0, layer 0, kv_head 0, slot 0, channel 0] and K[sequence 0, layer 0, "
                 "kv_head 1, slot 0, channel 0] are one memory: two KV heads must not share any");
  check_contains(complaint_about(slip::keys_are_values), "K and V must not share any");
  check_contains(complaint_about(slip::one_layer_for_all), "two layers must not share any");
  check_contains(complaint_about(slip::slots_overlap), "two slots must not share any");
  check_contains(complaint_about(slip::sequences_overlap), "two sequences must not share any");
}

TEST_CASE("store contract: numbers that do not agree are named") {
  check_contains(complaint_about(slip::one_slot_too_few),
                 "values(0) is a view of another shape than shape()");
  check_contains(complaint_about(slip::one_too_much), "capacity() = 25, but a lane has 24 slots");
  check_contains(complaint_about(slip::one_too_little),
                 "capacity() = 23 of a store addressed by slot must be its 24 slots");
}

TEST_CASE("store contract: a release that counts wrongly or touches a living token is named") {
  check_contains(complaint_about(slip::forgets_one),
                 "release of 1 tokens says that 0 came free, but with granule() = 1 each must");
  check_contains(complaint_about(slip::clears_by_position), "though the token stays");
}

TEST_CASE("store contract: faults of a store that places tokens itself are named") {
  auto const about = [](fault bug) { return complaint(cells_with(bug), cells_step); };
  check_contains(about(fault::frees_the_wrong_cell),
                 "but by the reports and releases it must hold");
  check_contains(about(fault::counts_but_does_not_free), "by the reports and releases");
  check_contains(about(fault::counts_too_many), "tokens says that");
  check_contains(about(fault::capacity_too_large),
                 "no room for 1 tokens in row 0 (all cells are taken), though a lane holds 23 "
                 "tokens and capacity() = 24");
  check_contains(about(fault::frees_cells_it_never_had), "which was never there");
  check_contains(about(fault::reports_too_late_a_slot), "the lane has slots 0 to 23");
  check_contains(about(fault::reports_once_for_two), "did not report where a token of row 0");
  check_contains(about(fault::keeps_rejected_tokens), "by the reports and releases");
  check_contains(about(fault::fork_goes_with_its_origin),
                 "after the origin of a fork was closed, slot 0 of row 1");
  check_contains(about(fault::frees_less_than_a_page),
                 "1 came free, but tokens come free by whole pages of granule() = 4");
}

TEST_CASE("store contract: wrong frees are seen without a way to ask the store") {
  auto const about = [](fault bug) { return complaint(silent_cells_with(bug), cells_step); };
  check_contains(about(fault::frees_the_wrong_cell), "is still there and was not released");
  check_contains(about(fault::counts_but_does_not_free), "release must free what it counts");
}
