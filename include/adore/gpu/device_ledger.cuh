// SPDX-License-Identifier: Apache-2.0
// The books of a cache in device memory: owns what `ledger_view` points to, and the life of the
// sequences in it.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/lane_exchange.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/release_ring.cuh"
#include "adore/gpu/row_life.cuh"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace adore::gpu {

/// Positions, policy state and budgets of every lane, in device memory. Never holds K/V.
///
/// A step is: each row's `count` is set (1 after `open_async`), the layers attend and decide,
/// `advance_async`. Nothing of that comes back to the host; who wants to know what was released
/// reads the ring when it likes.
template <eviction_policy P>
class device_ledger {
 public:
  /// @param shape    rows, layers, KV heads and slots per lane; channels of the keys to attend, or
  ///                 0: up to 64 lanes of over 1024 slots get memory in which the blocks that
  ///                 share them meet, 10 KB per lane and 1 to 4 KB per lane and channel, as slots
  ///                 are many; without it they are slower
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
    require(max_new >= 1 && max_new <= most_new_tokens, "max_new", max_new, "must lie in [1, 16]");
    require(guests >= 0, "guests", guests, "must not be negative");
    require(shape.slots >= max_new + guests,
            "slots",
            shape.slots,
            "must hold the new tokens of a step, and guests");
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
        if (budget != unbounded && budget > shape.slots - max_new - guests) {
          refuse("budget",
                 budget,
                 std::to_string(shape.slots) + " slots, less max_new = " + std::to_string(max_new) +
                     " and guests = " + std::to_string(guests) + ", are too few for it");
        }
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
    counts_ = device_buffer<index_t>(rows);
    without_room_ = device_buffer<unsigned>(1);
    ring_ = release_ring(ring);
    index_t const attended = view_.attended_lanes();
    view_.exchange_floats =
        detail::lane_exchange::useful_floats(attended, shape.slots, shape.channels);
    if (view_.exchange_floats > 0) {
      exchange_ = device_buffer<unsigned char>(static_cast<std::size_t>(attended) *
                                               detail::lane_exchange::bytes(view_.exchange_floats));
      clear(exchange_);
    }
    if (past > 0) {
      require(reach == scope::model, "past", past, "tokens come back in scope model only");
      released_ = device_buffer<std::uint8_t>(rows * static_cast<std::size_t>(past));
      priorities_ = device_buffer<float>(rows * static_cast<std::size_t>(past));
      departures_ = device_buffer<departure>(rows * most_departures);
      departed_ = device_buffer<unsigned>(rows);
      view_.past = {
          released_.data(), priorities_.data(), past, departures_.data(), departed_.data()};
      if (remembers_states<P>) past_states_ = device_buffer<slot_state_of<P>>(released_.size());
      clear(departed_, released_, priorities_, departures_, past_states_);
      view_.past_states = past_states_.data();
    }
    view_.positions = positions_.data();
    view_.states = states_.data();
    view_.lane_states = lane_states_.data();
    view_.lanes = lanes_.data();
    view_.new_slots = new_slots_.data();
    view_.rows = rows_.data();
    view_.lanes_without_room = without_room_.data();
    view_.exchange = exchange_.data();
    view_.released = ring_.view();
    check(cudaMemset(positions_.data(), 0xFF, positions_.bytes()));  // no_position
    clear(states_, lane_states_, lanes_, new_slots_, rows_, without_room_);
    check(cudaDeviceSynchronize());
  }

  P const& policy() const noexcept { return policy_; }
  ledger_view<P> const& view() const noexcept { return view_; }
  std::size_t allocated_bytes() const noexcept {
    return positions_.bytes() + states_.bytes() + lane_states_.bytes() + lanes_.bytes() +
           new_slots_.bytes() + rows_.bytes() + ring_.bytes() + budgets_.bytes() + counts_.bytes() +
           exchange_.bytes() + released_.bytes() + priorities_.bytes() + departures_.bytes() +
           departed_.bytes() + past_states_.bytes();
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
  ///
  /// @throws std::logic_error, as `snapshot` and `restore` do, if released tokens may come back:
  ///         then all parts go together, see `returning_rows`
  void fork_async(cudaStream_t stream, index_t from, index_t to) {
    refuse_past("fork_async");
    check_row(from);
    check_row(to);
    detail::fork_row_async(stream, view_, from, to);
  }
  /// New tokens of each row in the steps to come, 0 for a row that waits. Rows without a sequence
  /// have none, whatever is asked for.
  ///
  /// @param counts  [row], each 0..max_new
  /// Stream: synchronises.
  void set_counts(cudaStream_t stream, std::span<index_t const> counts) {
    if (counts.size() != static_cast<std::size_t>(view_.row_count)) {
      throw std::invalid_argument("adore: set_counts: " + std::to_string(counts.size()) +
                                  " counts, the ledger has " + std::to_string(view_.row_count) +
                                  " rows");
    }
    for (index_t const count : counts) {
      require(count >= 0 && count <= view_.max_new, "count", count, "must lie in [0, max_new]");
    }
    counts_.copy_from_async(counts, stream);
    set_counts_async(stream, counts_.data());
    check(cudaStreamSynchronize(stream));
  }
  /// ... from device memory. A number that is not 0..max_new becomes the nearest that is.
  ///
  /// Stream: asynchronous, capturable.
  void set_counts_async(cudaStream_t stream, index_t const* counts) {
    detail::set_counts_async(stream, view_, counts);
  }

  // ------------------------------------------------------------------ what the host may ask

  /// Positions of the tokens in a lane, ascending. Synchronises.
  std::vector<position_t> kept(cudaStream_t stream, index_t lane) const {
    require(lane >= 0 && lane < view_.row_count * view_.lanes_per_row(),
            "lane",
            lane,
            "there is no such lane");
    position_t const next =
        detail::read_one<row_books>(stream, rows_.data() + lane / view_.lanes_per_row()).next;
    std::vector<position_t> tokens = detail::read_some<position_t>(
        stream, view_.positions + view_.cell(lane), static_cast<std::size_t>(view_.slots));
    std::erase_if(tokens, [next](position_t p) { return p < 0 || p >= next; });
    std::sort(tokens.begin(), tokens.end());
    return tokens;
  }
  /// How often a new token found no slot, because a policy without a budget ran out of them, or an
  /// engine named too few victims: such tokens were attended by nobody. Synchronises.
  unsigned tokens_without_room(cudaStream_t stream) const {
    return detail::read_one<unsigned>(stream, without_room_.data());
  }
  /// Releases since number `from` (exclusive), in the order in which they were written. On a stream
  /// of its own it waits for no step; what a running one has not finished writing comes next time.
  ///
  /// @throws std::logic_error if there is no ring, std::invalid_argument if so many have not been
  ///         written, std::runtime_error if the ring has been overrun: `kept` tells where things
  ///         stand
  /// Stream: synchronises.
  std::vector<released_entry> released_since(cudaStream_t stream, std::uint64_t from) const {
    return ring_.since(stream, from);
  }
  std::uint64_t releases(cudaStream_t stream) const { return ring_.written(stream); }

  /// A row's books as `adore::ledger::snapshot` gives them: host and device read each other's.
  /// Synchronises.
  row_snapshot snapshot(cudaStream_t stream, index_t row) const {
    refuse_past("snapshot");
    check_row(row);
    return detail::snapshot_of(stream, view_, policy_, row);
  }
  /// Opens `row` as it was saved by a ledger of the same set-up, here or on the host. Synchronises.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit
  void restore(cudaStream_t stream, index_t row, row_snapshot const& saved) {
    refuse_past("restore");
    check_row(row);
    if (saved.past) {
      throw std::invalid_argument(
          "adore: the snapshot has released tokens that may come back, and in this cache none do");
    }
    require_sound(saved, detail::row_measure_of(view_));
    detail::restore_row(stream, view_, row, saved);
  }

  /// @throws std::invalid_argument if there is no such row
  void check_row(index_t row) const {
    require(row >= 0 && row < view_.row_count, "row", row, "there is no such row");
  }

 private:
  static constexpr index_t cells_per_line = 32;  // 128 bytes of positions

  template <class... Buffers>
  static void clear(Buffers&... buffers) {
    (check(cudaMemset(buffers.data(), 0, buffers.bytes())), ...);
  }
  [[noreturn]] static void refuse(char const* field, index_t value, std::string const& why) {
    throw std::invalid_argument(std::string("adore: device_ledger: ") + field + " = " +
                                std::to_string(value) + ": " + why);
  }
  static void require(bool holds, char const* field, index_t value, char const* rule) {
    if (!holds) refuse(field, value, rule);
  }
  void refuse_past(char const* what) const {
    if (view_.past.tokens == 0) return;
    throw std::logic_error(std::string("adore: device_ledger: ") + what +
                           ": released tokens may come back; use returning_rows, which takes all "
                           "that is known of them along");
  }
  void restart_async(cudaStream_t stream, index_t row, std::uint64_t seed, index_t count) {
    check_row(row);
    detail::open_row_kernel<P><<<static_cast<unsigned>(view_.lanes_per_row()), 128, 0, stream>>>(
        view_, budgets_.data(), row, seed, count);
    check(cudaGetLastError());
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
  device_buffer<index_t> counts_;  // [row] on their way from the host
  device_buffer<unsigned> without_room_;
  device_buffer<unsigned char> exchange_;
  release_ring ring_;
  device_buffer<std::uint8_t> released_;         // [row, token], of `past_view`
  device_buffer<float> priorities_;              // [row, token]
  device_buffer<departure> departures_;          // [row, most_departures]
  device_buffer<unsigned> departed_;             // [row]
  device_buffer<slot_state_of<P>> past_states_;  // [row, token] or empty
};

}  // namespace adore::gpu
