// SPDX-License-Identifier: Apache-2.0
// A row's books on their way between device memory and a snapshot on the host.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_memory.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/guest_places.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace adore::gpu::detail {

/// Copies from device memory. Synchronises.
template <class T>
std::vector<T> read_some(cudaStream_t stream, T const* from, std::size_t count) {
  std::vector<T> copy(count);
  if (count == 0) return copy;
  check(cudaMemcpyAsync(copy.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return copy;
}
template <class T>
T read_one(cudaStream_t stream, T const* from) {
  return read_some(stream, from, 1).front();
}
template <class T>
void write_async(cudaStream_t stream, T* to, std::span<T const> from) {
  if (from.empty()) return;
  check(cudaMemcpyAsync(to, from.data(), from.size_bytes(), cudaMemcpyHostToDevice, stream));
}
/// Copies what an array of so many elements per row holds of one row to another.
template <class T>
void copy_row_async(cudaStream_t stream, T* data, std::size_t of_row, index_t from, index_t to) {
  check(cudaMemcpyAsync(data + static_cast<std::size_t>(to) * of_row,
                        data + static_cast<std::size_t>(from) * of_row,
                        of_row * sizeof(T),
                        cudaMemcpyDeviceToDevice,
                        stream));
}
template <class T>
void append_bytes(std::vector<std::byte>& to, std::span<T const> from) {
  auto const* const bytes = reinterpret_cast<std::byte const*>(from.data());
  to.insert(to.end(), bytes, bytes + from.size_bytes());
}

/// What a snapshot of a row must measure to be loaded.
template <eviction_policy P>
row_measure row_measure_of(ledger_view<P> const& ledger) {
  return {ledger.reach,
          static_cast<std::size_t>(ledger.lanes_per_row()),
          static_cast<std::size_t>(ledger.slots),
          lane_memory<P>::bytes_per_slot_state,
          lane_memory<P>::bytes_per_lane_state,
          ledger.past.tokens > 0};
}

/// As `adore::ledger::snapshot` gives them. Synchronises.
template <eviction_policy P>
row_snapshot snapshot_of(cudaStream_t stream,
                         ledger_view<P> const& ledger,
                         P const& policy,
                         index_t row) {
  using slot_state = slot_state_of<P>;
  row_books const books = read_one<row_books>(stream, ledger.rows + row);
  row_snapshot saved{.reach = ledger.reach, .next = books.next, .seed = books.seed};
  // a row's lanes lie one behind the other: a copy for all of them
  index_t const first = row * ledger.lanes_per_row();
  auto const lanes = static_cast<std::size_t>(ledger.lanes_per_row());
  auto const slots = static_cast<std::size_t>(ledger.slots);
  auto const stride = static_cast<std::size_t>(ledger.stride);
  for (lane_books const& lane : read_some<lane_books>(stream, ledger.lanes + first, lanes)) {
    saved.budgets.push_back(lane.budget);
  }
  auto const positions =
      read_some<position_t>(stream, ledger.positions + ledger.cell(first), lanes * stride);
  std::vector<slot_state> states;
  if constexpr (!std::is_empty_v<slot_state>) {
    states = read_some<slot_state>(stream, ledger.states_of(first), lanes * stride);
  }
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    for (std::size_t s = 0; s < slots; ++s) {
      position_t const p = positions[lane * stride + s];
      bool const is_kept = p >= 0 && p < books.next;  // guests neither
      saved.positions.push_back(is_kept ? p : no_position);
      saved.rotary.push_back(saved.positions.back());
      if constexpr (numbers_tokens<P>) {
        if (is_kept) {
          saved.rotary.back() = shown_slot(policy, p, states[lane * stride + s]).rotary_position;
        }
      }
    }
    if constexpr (!std::is_empty_v<slot_state>) {
      append_bytes(saved.slot_states,
                   std::span<slot_state const>(states).subspan(lane * stride, slots));
    }
  }
  if constexpr (!std::is_empty_v<lane_state_of<P>>) {
    auto const of_lanes = read_some<lane_state_of<P>>(stream, ledger.lane_state(first), lanes);
    append_bytes(saved.lane_states, std::span<lane_state_of<P> const>(of_lanes));
  }
  return saved;
}

/// Writes them, with slots for the tokens of the next step. Synchronises.
///
/// @pre `require_sound` has passed
/// @param places  that are set aside for guests in the row's only lane
/// @throws std::invalid_argument, with nothing changed, if a lane has no room for its budget
template <eviction_policy P>
void restore_row(cudaStream_t stream,
                 ledger_view<P> const& ledger,
                 index_t row,
                 row_snapshot const& saved,
                 guest_places const& places = {}) {
  auto const lanes = static_cast<std::size_t>(ledger.lanes_per_row());
  auto const slots = static_cast<std::size_t>(ledger.slots);
  auto const stride = static_cast<std::size_t>(ledger.stride);
  index_t const room = ledger.slots - ledger.max_new - ledger.guests;
  constexpr std::size_t of_state = sizeof(slot_state_of<P>);
  std::vector<position_t> positions(lanes * stride, no_position);
  std::vector<index_t> new_slots(lanes * static_cast<std::size_t>(ledger.max_new));
  std::vector<lane_books> books(lanes);
  std::vector<std::byte> states(std::is_empty_v<slot_state_of<P>> ? 0 : lanes * stride * of_state);
  for (std::size_t l = 0; l < lanes; ++l) {
    position_t* const here = positions.data() + l * stride;
    std::copy_n(saved.positions.begin() + static_cast<std::ptrdiff_t>(l * slots), slots, here);
    if (!states.empty()) {
      std::memcpy(states.data() + l * stride * of_state,
                  saved.slot_states.data() + l * slots * of_state,
                  slots * of_state);
    }
    books[l].budget = saved.budgets[l];
    if (saved.budgets[l] != unbounded && saved.budgets[l] > room) {
      throw std::invalid_argument("adore: the snapshot has a budget of " +
                                  std::to_string(saved.budgets[l]) + ", here a lane has room for " +
                                  std::to_string(room));
    }
    for (std::size_t place = 0; place < places.slots.size(); ++place) {
      here[places.slots[place]] =
          places.guests[place] < 0 ? no_guest : guest_mark(places.guests[place]);
    }
    index_t reserved = 0;
    for (index_t s = 0; s < ledger.slots; ++s) {
      if (is_guest(here[s])) continue;
      if (here[s] != no_position) {
        ++books[l].occupied;
        books[l].extent = s + 1;
      } else if (reserved < ledger.max_new) {
        here[s] = saved.next + reserved++;
        new_slots[l * static_cast<std::size_t>(ledger.max_new) +
                  static_cast<std::size_t>(here[s] % ledger.max_new)] = s;
        books[l].extent = s + 1;
        if constexpr (scores_tokens<P>) {  // of a reserved slot it is empty
          slot_state_of<P> const none{};
          std::memcpy(states.data() + (l * stride + static_cast<std::size_t>(s)) * of_state,
                      &none,
                      of_state);
        }
      }
    }
    if (reserved < ledger.max_new) {
      throw std::invalid_argument("adore: the snapshot leaves no slot for new tokens");
    }
    if (places.in_use) books[l].extent = ledger.slots;
  }
  auto const first = static_cast<std::size_t>(row) * lanes;
  write_async(stream,
              ledger.positions + ledger.cell(static_cast<index_t>(first)),
              std::span<position_t const>(positions));
  write_async(stream,
              ledger.new_slots + first * static_cast<std::size_t>(ledger.max_new),
              std::span<index_t const>(new_slots));
  write_async(stream, ledger.lanes + first, std::span<lane_books const>(books));
  if constexpr (!std::is_empty_v<slot_state_of<P>>) {
    write_async(stream,
                reinterpret_cast<std::byte*>(ledger.states_of(static_cast<index_t>(first))),
                std::span<std::byte const>(states));
  }
  if constexpr (!std::is_empty_v<lane_state_of<P>>) {
    write_async(stream,
                reinterpret_cast<std::byte*>(ledger.lane_state(static_cast<index_t>(first))),
                std::span<std::byte const>(saved.lane_states));
  }
  row_books const sequence{saved.next, 1, saved.seed};
  write_async(stream, ledger.rows + row, std::span<row_books const>(&sequence, 1));
  check(cudaStreamSynchronize(stream));
}

}  // namespace adore::gpu::detail
