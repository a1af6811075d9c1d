// SPDX-License-Identifier: Apache-2.0
// Who of a row's released tokens is back, and whose turn it is, on its way to another row, and
// between device memory and a snapshot on the host.
#pragma once

#include "adore/eviction/row_snapshot.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/guest_places.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/rebuild_choice.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <vector>

namespace adore::gpu::detail {

/// @param tokens  of a row whose ids are known
inline void fork_guests_async(
    cudaStream_t stream, rebuild_view const& rebuild, index_t tokens, index_t from, index_t to) {
  auto const count = static_cast<std::size_t>(rebuild.count);
  copy_row_async(stream, rebuild.ids, static_cast<std::size_t>(tokens), from, to);
  copy_row_async(stream, rebuild.guests, count, from, to);
  copy_row_async(stream, rebuild.guest_slots, count, from, to);
  copy_row_async(stream, rebuild.entered, count, from, to);
  copy_row_async(stream, rebuild.phases, 1, from, to);
}

/// Adds to a row's books the ids of its tokens and who is back. Synchronises.
inline void save_guests(cudaStream_t stream,
                        rebuild_view const& rebuild,
                        index_t tokens,
                        index_t row,
                        row_snapshot& saved) {
  past_snapshot& past = *saved.past;
  past.phase = saved.next == 0 ? row : read_one<index_t>(stream, rebuild.phases + row);
  if (rebuild.period > 1) past.phase = (saved.next + past.phase) % rebuild.period;
  if (saved.next == 0) return;
  auto const of_ids = static_cast<std::size_t>(row) * static_cast<std::size_t>(tokens);
  past.ids = read_some<index_t>(stream, rebuild.ids + of_ids, static_cast<std::size_t>(saved.next));
  if (!rebuild.stays) return;  // all leave when the next step begins
  auto const count = static_cast<std::size_t>(rebuild.count);
  std::size_t const first = static_cast<std::size_t>(row) * count;
  auto const guests = read_some<position_t>(stream, rebuild.guests + first, count);
  auto const slots = read_some<index_t>(stream, rebuild.guest_slots + first, count);
  auto const entered = read_some<unsigned long long>(stream, rebuild.entered + first, count);
  std::vector<std::size_t> places;
  for (std::size_t place = 0; place < count; ++place) {
    if (guests[place] >= 0) places.push_back(place);
  }
  std::sort(places.begin(), places.end(), [&](std::size_t a, std::size_t b) {
    return entered[a] < entered[b];
  });
  for (std::size_t const place : places) {
    past.guests.push_back(guests[place]);
    past.guest_slots.push_back(slots[place]);
  }
}

/// @throws std::invalid_argument if a row of this schedule is never as the snapshot says
inline void require_schedule(rebuild_view const& rebuild, past_snapshot const& past) {
  if (past.guests.empty() || (rebuild.stays && !rebuild.competes)) return;
  throw std::invalid_argument(
      "adore: the snapshot has released tokens that are back between two steps; in this cache they "
      "leave, or compete, at the end of each");
}

/// @pre `require_schedule` has passed
/// @param places  as the ledger has them. Synchronises.
inline void load_guests(cudaStream_t stream,
                        rebuild_view const& rebuild,
                        index_t tokens,
                        index_t row,
                        row_snapshot const& saved,
                        guest_places const& places) {
  past_snapshot const& past = *saved.past;
  // as many steps before its turn as the snapshot's row
  index_t phase = past.phase;
  if (rebuild.period > 1) {
    index_t const apart = past.phase % rebuild.period - saved.next % rebuild.period;
    phase = (apart + rebuild.period) % rebuild.period;
  }
  auto const of_ids = static_cast<std::size_t>(row) * static_cast<std::size_t>(tokens);
  std::size_t const first = static_cast<std::size_t>(row) * places.slots.size();
  write_async(stream, rebuild.ids + of_ids, std::span<index_t const>(past.ids));
  write_async(stream, rebuild.guests + first, std::span<position_t const>(places.guests));
  write_async(stream, rebuild.guest_slots + first, std::span<index_t const>(places.slots));
  write_async(stream, rebuild.entered + first, std::span<unsigned long long const>(places.entered));
  write_async(stream, rebuild.phases + row, std::span<index_t const>(&phase, 1));
  check(cudaStreamSynchronize(stream));
}

}  // namespace adore::gpu::detail
