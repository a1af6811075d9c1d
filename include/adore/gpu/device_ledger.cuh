// SPDX-License-Identifier: Apache-2.0
// The books of a cache in device memory: owns what `ledger_view` points to, and the life of the
// sequences in it.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace adore::gpu {

namespace detail {

template <class P>
__global__ void open_row_kernel(ledger_view<P> const ledger,
                                index_t const* budgets,
                                index_t const row,
                                std::uint64_t const seed,
                                index_t const count) {
  index_t const in_row = static_cast<index_t>(blockIdx.x);
  index_t const lane = row * ledger.lanes_per_row() + in_row;
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.stride;
       s += static_cast<index_t>(blockDim.x)) {
    bool const reserved = count > 0 && s < ledger.max_new;
    bool const for_guests = s >= ledger.slots - ledger.guests && s < ledger.slots;
    ledger.positions[ledger.cell(lane) + s] = reserved ? s : for_guests ? no_guest : no_position;
    if constexpr (scores_tokens<P>) {
      if (reserved) ledger.states_of(lane)[s] = {};
    }
    if (s < ledger.max_new) ledger.new_slots[lane * ledger.max_new + s] = s;
  }
  if (threadIdx.x == 0) {
    ledger.lanes[lane] = {0, count > 0 ? ledger.max_new : 0, budgets[in_row]};
    *ledger.lane_state(lane) = {};
    if (in_row == 0) ledger.rows[row] = {0, count, seed};
  }
}

template <class P>
__global__ void fork_row_kernel(ledger_view<P> const ledger, index_t const from, index_t const to) {
  index_t const in_row = static_cast<index_t>(blockIdx.x);
  index_t const old = from * ledger.lanes_per_row() + in_row;
  index_t const twin = to * ledger.lanes_per_row() + in_row;
  for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.stride;
       s += static_cast<index_t>(blockDim.x)) {
    ledger.positions[ledger.cell(twin) + s] = ledger.positions[ledger.cell(old) + s];
    if constexpr (!std::is_empty_v<slot_state_of<P>>) {
      ledger.states_of(twin)[s] = ledger.states_of(old)[s];
    }
    if (s < ledger.max_new) {
      ledger.new_slots[twin * ledger.max_new + s] = ledger.new_slots[old * ledger.max_new + s];
    }
  }
  if (threadIdx.x == 0) {
    ledger.lanes[twin] = ledger.lanes[old];
    *ledger.lane_state(twin) = *ledger.lane_state(old);
    if (in_row == 0) ledger.rows[to] = ledger.rows[from];
  }
}

}  // namespace detail

/// Positions, policy state and budgets of every lane, in device memory. Never holds K/V.
///
/// A step is: each row's `count` is set (1 after `open_async`), the layers attend and decide,
/// `advance_async`. Nothing of that comes back to the host; who wants to know what was released
/// reads the ring when it likes.
template <eviction_policy P>
class device_ledger {
 public:
  /// @param shape    rows, layers, KV heads and slots per lane; channels are not looked at
  /// @param max_new  new tokens that a step may bring per row
  /// @param ring     releases that are remembered for the host; 0: none
  /// @param guests   slots of a lane for released tokens that are back, see `device_rebuild`
  /// @param past     tokens of a sequence that are remembered after their release; 0: none
  /// @throws std::invalid_argument if budget, max_new and guests do not fit into the slots
  device_ledger(P policy,
                kv_shape const& shape,
                scope reach,
                index_t max_new = 1,
                unsigned ring = 0,
                index_t guests = 0,
                index_t past = 0)
      : policy_(policy) {
    policy.validate();
    require(max_new >= 1, "max_new", max_new, "must be at least 1");
    require(shape.slots >= max_new, "slots", shape.slots, "must hold the new tokens of a step");
    view_.reach = reach;
    view_.row_count = shape.sequences;
    view_.layers = shape.layers;
    view_.kv_heads = shape.kv_heads;
    view_.slots = shape.slots;
    view_.stride = (shape.slots + cells_per_line - 1) / cells_per_line * cells_per_line;
    view_.max_new = max_new;
    view_.guests = guests;
    std::vector<index_t> initial;
    for (index_t layer = 0; layer < view_.lane_layers(); ++layer) {
      for (index_t head = 0; head < view_.lane_heads(); ++head) {
        index_t budget = policy.budget();
        if constexpr (budgets_lanes<P>) {
          kv_shape lanes = shape;
          budget = policy.lane_budget(lanes, layer, head);
        }
        require(budget == unbounded || budget <= shape.slots - max_new - guests,
                "budget",
                budget,
                "with max_new and guests it is more than the slots of a lane");
        initial.push_back(budget);
      }
    }
    auto const rows = static_cast<std::size_t>(shape.sequences);
    auto const lanes = rows * static_cast<std::size_t>(view_.lanes_per_row());
    auto const cells = lanes * static_cast<std::size_t>(view_.stride);
    budgets_ = device_buffer<index_t>(initial);
    positions_ = device_buffer<position_t>(cells);
    states_ = device_buffer<slot_state_of<P>>(std::is_empty_v<slot_state_of<P>> ? 1 : cells);
    lane_states_ = device_buffer<lane_state_of<P>>(std::is_empty_v<lane_state_of<P>> ? 1 : lanes);
    lanes_ = device_buffer<lane_books>(lanes);
    new_slots_ = device_buffer<index_t>(lanes * static_cast<std::size_t>(max_new));
    rows_ = device_buffer<row_books>(rows);
    without_room_ = device_buffer<unsigned>(1);
    ring_ = device_buffer<released_entry>(ring);
    written_ = device_buffer<unsigned long long>(1);
    if (past > 0) {
      require(reach == scope::model, "past", past, "tokens come back in scope model only");
      released_ = device_buffer<std::uint8_t>(rows * static_cast<std::size_t>(past));
      priorities_ = device_buffer<float>(rows * static_cast<std::size_t>(past));
      departures_ = device_buffer<departure>(rows * most_departures);
      departed_ = device_buffer<unsigned>(rows);
      view_.past = {
          released_.data(), priorities_.data(), past, departures_.data(), departed_.data()};
      check(cudaMemset(departed_.data(), 0, departed_.bytes()));
      check(cudaMemset(released_.data(), 0, released_.bytes()));
      check(cudaMemset(priorities_.data(), 0, priorities_.bytes()));
    }
    view_.positions = positions_.data();
    view_.states = states_.data();
    view_.lane_states = lane_states_.data();
    view_.lanes = lanes_.data();
    view_.new_slots = new_slots_.data();
    view_.rows = rows_.data();
    view_.lanes_without_room = without_room_.data();
    view_.released = {ring_.data(), written_.data(), ring};
    check(cudaMemset(positions_.data(), 0xFF, positions_.bytes()));  // no_position
    check(cudaMemset(states_.data(), 0, states_.bytes()));
    check(cudaMemset(lane_states_.data(), 0, lane_states_.bytes()));
    check(cudaMemset(lanes_.data(), 0, lanes_.bytes()));
    check(cudaMemset(new_slots_.data(), 0, new_slots_.bytes()));
    check(cudaMemset(rows_.data(), 0, rows_.bytes()));
    check(cudaMemset(without_room_.data(), 0, without_room_.bytes()));
    check(cudaMemset(ring_.data(), 0, ring_.bytes()));
    check(cudaMemset(written_.data(), 0, written_.bytes()));
    check(cudaDeviceSynchronize());
  }

  P const& policy() const noexcept { return policy_; }
  ledger_view<P> const& view() const noexcept { return view_; }
  std::size_t allocated_bytes() const noexcept {
    return positions_.bytes() + states_.bytes() + lane_states_.bytes() + lanes_.bytes() +
           new_slots_.bytes() + rows_.bytes() + ring_.bytes() + budgets_.bytes();
  }

  // ------------------------------------------------------------------ life of a sequence

  /// Begins an empty sequence, with one new token per step until its `count` is changed.
  ///
  /// Stream: asynchronous. Whatever the row held is gone.
  void open_async(cudaStream_t stream, index_t row, std::uint64_t seed = 0) {
    restart_async(stream, row, seed, 1);
  }
  /// The row takes no part in steps until it is opened again.
  void close_async(cudaStream_t stream, index_t row) { restart_async(stream, row, 0, 0); }
  /// `to` goes on from what `from` holds; K/V are the store's to copy, slot by slot.
  void fork_async(cudaStream_t stream, index_t from, index_t to) {
    refuse_past("fork_async");
    check_row(from);
    check_row(to);
    detail::fork_row_kernel<P>
        <<<static_cast<unsigned>(view_.lanes_per_row()), 128, 0, stream>>>(view_, from, to);
    check(cudaGetLastError());
  }
  /// New tokens of each row in the steps to come, 0 for a row that waits.
  ///
  /// @param counts  [row], each 0..max_new
  /// Stream: synchronises.
  void set_counts(cudaStream_t stream, std::span<index_t const> counts) {
    auto rows = rows_.to_host(stream);
    if (counts.size() != rows.size()) {
      throw std::invalid_argument("adore: set_counts: one number per row is needed");
    }
    for (std::size_t row = 0; row < rows.size(); ++row) {
      require(counts[row] >= 0 && counts[row] <= view_.max_new,
              "count",
              counts[row],
              "must lie in [0, max_new]");
      rows[row].count = counts[row];
    }
    rows_.copy_from_async(rows, stream);
    check(cudaStreamSynchronize(stream));
  }

  // ------------------------------------------------------------------ what the host may ask

  /// Positions of the tokens in a lane, ascending. Synchronises.
  std::vector<position_t> kept(cudaStream_t stream, index_t lane) const {
    position_t const next =
        one<row_books>(stream, rows_.data() + lane / view_.lanes_per_row()).next;
    std::vector<position_t> tokens = some<position_t>(
        stream, view_.positions + view_.cell(lane), static_cast<std::size_t>(view_.slots));
    std::erase_if(tokens, [next](position_t p) { return p < 0 || p >= next; });
    std::sort(tokens.begin(), tokens.end());
    return tokens;
  }
  /// How often a new token found no slot, because a policy without a budget ran out of them: such
  /// tokens were attended by nobody. Synchronises.
  unsigned tokens_without_room(cudaStream_t stream) const {
    return one<unsigned>(stream, without_room_.data());
  }
  /// Releases since number `from` (exclusive), in the order in which they were written.
  ///
  /// @throws std::runtime_error if the ring has been overrun: `kept` tells where things stand
  /// Stream: synchronises.
  std::vector<released_entry> released_since(cudaStream_t stream, std::uint64_t from) const {
    std::uint64_t const written = one<unsigned long long>(stream, written_.data());
    if (written - from > view_.released.capacity) {
      throw std::runtime_error("adore: " + std::to_string(written - from) +
                               " releases since the last look, the ring holds " +
                               std::to_string(view_.released.capacity) +
                               "; ask `kept` for the lanes, or make the ring larger");
    }
    std::vector<released_entry> entries;
    auto const ring = ring_.to_host(stream);
    for (std::uint64_t n = from; n < written; ++n) entries.push_back(ring[n % ring.size()]);
    return entries;
  }
  std::uint64_t releases(cudaStream_t stream) const {
    return one<unsigned long long>(stream, written_.data());
  }

  /// A row's books as `adore::ledger::snapshot` gives them: host and device read each other's.
  /// Synchronises.
  row_snapshot snapshot(cudaStream_t stream, index_t row) const {
    refuse_past("snapshot");
    check_row(row);
    row_books const books = one<row_books>(stream, rows_.data() + row);
    row_snapshot saved{.reach = view_.reach, .next = books.next, .seed = books.seed};
    index_t const first = row * view_.lanes_per_row();
    for (index_t lane = first; lane < first + view_.lanes_per_row(); ++lane) {
      saved.budgets.push_back(one<lane_books>(stream, lanes_.data() + lane).budget);
      auto here = some<position_t>(
          stream, view_.positions + view_.cell(lane), static_cast<std::size_t>(view_.slots));
      for (position_t& p : here) p = p < books.next ? p : no_position;
      saved.positions.insert(saved.positions.end(), here.begin(), here.end());
      saved.rotary.insert(saved.rotary.end(), here.begin(), here.end());
      if constexpr (!std::is_empty_v<slot_state_of<P>>) {
        auto const states = some<slot_state_of<P>>(
            stream, view_.states_of(lane), static_cast<std::size_t>(view_.slots));
        append_bytes(saved.slot_states, states);
        for (std::size_t s = 0; numbers_tokens<P> && s < here.size(); ++s) {
          position_t& rotary = saved.rotary[saved.rotary.size() - here.size() + s];
          if (rotary >= 0) rotary = shown_slot(policy_, rotary, states[s]).rotary_position;
        }
      }
      if constexpr (!std::is_empty_v<lane_state_of<P>>) {
        append_bytes(saved.lane_states, some<lane_state_of<P>>(stream, view_.lane_state(lane), 1));
      }
    }
    return saved;
  }
  /// Opens `row` as it was saved by a ledger of the same set-up, here or on the host. Synchronises.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit
  void restore(cudaStream_t stream, index_t row, row_snapshot const& saved) {
    check_row(row);
    auto const lanes = static_cast<std::size_t>(view_.lanes_per_row());
    auto const slots = static_cast<std::size_t>(view_.slots);
    bool const fits =
        saved.reach == view_.reach && saved.budgets.size() == lanes &&
        saved.positions.size() == lanes * slots &&
        saved.slot_states.size() ==
            (std::is_empty_v<slot_state_of<P>> ? 0 : lanes * slots * sizeof(slot_state_of<P>)) &&
        saved.lane_states.size() ==
            (std::is_empty_v<lane_state_of<P>> ? 0 : lanes * sizeof(lane_state_of<P>));
    if (!fits) {
      throw std::invalid_argument("adore: the snapshot is of a cache of another set-up");
    }
    if (saved.past) {
      throw std::invalid_argument(
          "adore: released tokens of the snapshot may come back: only a cache on the host loads "
          "it");
    }
    std::vector<position_t> positions(lanes * static_cast<std::size_t>(view_.stride), no_position);
    std::vector<index_t> new_slots(lanes * static_cast<std::size_t>(view_.max_new));
    std::vector<lane_books> books(lanes);
    std::vector<std::byte> states = saved.slot_states;
    for (std::size_t l = 0; l < lanes; ++l) {
      position_t* const here = positions.data() + l * static_cast<std::size_t>(view_.stride);
      std::copy_n(saved.positions.begin() + static_cast<std::ptrdiff_t>(l * slots), slots, here);
      books[l].budget = saved.budgets[l];
      index_t reserved = 0;
      for (index_t s = 0; s < view_.slots; ++s) {
        if (here[s] >= saved.next || here[s] < no_position) {
          throw std::invalid_argument("adore: the snapshot holds a token of the future");
        }
        if (here[s] != no_position) {
          ++books[l].occupied;
          books[l].extent = s + 1;
        } else if (reserved < view_.max_new) {
          here[s] = saved.next + reserved++;
          new_slots[l * static_cast<std::size_t>(view_.max_new) +
                    static_cast<std::size_t>(here[s] % view_.max_new)] = s;
          books[l].extent = s + 1;
          if constexpr (scores_tokens<P>) {  // of a reserved slot it is empty
            slot_state_of<P> const none{};
            std::memcpy(states.data() + (l * slots + static_cast<std::size_t>(s)) * sizeof(none),
                        &none,
                        sizeof(none));
          }
        }
      }
      if (reserved < view_.max_new) {
        throw std::invalid_argument("adore: the snapshot leaves no slot for new tokens");
      }
    }
    auto const first = static_cast<std::size_t>(row) * lanes;
    put(stream,
        view_.positions + view_.cell(static_cast<index_t>(first)),
        std::span<position_t const>(positions));
    put(stream,
        view_.new_slots + first * static_cast<std::size_t>(view_.max_new),
        std::span<index_t const>(new_slots));
    put(stream, view_.lanes + first, std::span<lane_books const>(books));
    if constexpr (!std::is_empty_v<slot_state_of<P>>) {
      for (std::size_t l = 0; l < lanes; ++l) {
        put(stream,
            reinterpret_cast<std::byte*>(view_.states_of(static_cast<index_t>(first + l))),
            std::span<std::byte const>(states).subspan(l * slots * sizeof(slot_state_of<P>),
                                                       slots * sizeof(slot_state_of<P>)));
      }
    }
    if constexpr (!std::is_empty_v<lane_state_of<P>>) {
      put(stream,
          reinterpret_cast<std::byte*>(view_.lane_state(static_cast<index_t>(first))),
          std::span<std::byte const>(saved.lane_states));
    }
    row_books const sequence{saved.next, 1, saved.seed};
    put(stream, view_.rows + row, std::span<row_books const>(&sequence, 1));
    check(cudaStreamSynchronize(stream));
  }

 private:
  static constexpr index_t cells_per_line = 32;  // 128 bytes of positions

  static void require(bool holds, char const* field, index_t value, char const* rule) {
    if (!holds) {
      throw std::invalid_argument(std::string("adore: device_ledger: ") + field + " = " +
                                  std::to_string(value) + ": " + rule);
    }
  }
  void refuse_past(char const* what) const {
    if (view_.past.tokens == 0) return;
    throw std::logic_error(std::string("adore: device_ledger: ") + what +
                           ": released tokens may come back, and it does not copy them");
  }
  void check_row(index_t row) const {
    require(row >= 0 && row < view_.row_count, "row", row, "there is no such row");
  }
  void restart_async(cudaStream_t stream, index_t row, std::uint64_t seed, index_t count) {
    check_row(row);
    detail::open_row_kernel<P><<<static_cast<unsigned>(view_.lanes_per_row()), 128, 0, stream>>>(
        view_, budgets_.data(), row, seed, count);
    check(cudaGetLastError());
  }
  template <class T>
  static std::vector<T> some(cudaStream_t stream, T const* from, std::size_t count) {
    std::vector<T> copy(count);
    check(cudaMemcpyAsync(copy.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    return copy;
  }
  template <class T>
  static T one(cudaStream_t stream, T const* from) {
    return some(stream, from, 1).front();
  }
  template <class T>
  static void put(cudaStream_t stream, T* to, std::span<T const> from) {
    check(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream));
  }
  template <class T>
  static void append_bytes(std::vector<std::byte>& to, std::vector<T> const& from) {
    auto const* const bytes = reinterpret_cast<std::byte const*>(from.data());
    to.insert(to.end(), bytes, bytes + from.size() * sizeof(T));
  }

  P policy_;
  ledger_view<P> view_;
  device_buffer<index_t> budgets_;  // [lane of a row] at the beginning
  device_buffer<position_t> positions_;
  device_buffer<slot_state_of<P>> states_;
  device_buffer<lane_state_of<P>> lane_states_;
  device_buffer<lane_books> lanes_;
  device_buffer<index_t> new_slots_;
  device_buffer<row_books> rows_;
  device_buffer<unsigned> without_room_;
  device_buffer<released_entry> ring_;
  device_buffer<unsigned long long> written_;
  device_buffer<std::uint8_t> released_;  // [row, token], of `past_view`
  device_buffer<float> priorities_;       // [row, token]
  device_buffer<departure> departures_;   // [row, most_departures]
  device_buffer<unsigned> departed_;      // [row]
};

}  // namespace adore::gpu
