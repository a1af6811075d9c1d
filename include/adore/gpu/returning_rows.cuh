// SPDX-License-Identifier: Apache-2.0
// Rows of a device cache whose released tokens may come back: forked, saved and loaded with all
// that is known of these.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/past_snapshot.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/gpu/device_ledger.cuh"
#include "adore/gpu/device_rebuild.cuh"
#include "adore/gpu/device_tier.cuh"
#include "adore/gpu/guest_places.cuh"
#include "adore/gpu/guests_of_row.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/past_books.cuh"
#include "adore/gpu/row_life.cuh"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <type_traits>

namespace adore::gpu {

/// The parts of a cache between two steps, when all streams have come to the end of the last one.
/// Host and device read each other's snapshots.
///
/// K and V in the slots are the store's to copy, to the same slots: all of a row, since who has
/// just been released, and may be restored, is still in its slot. A controller that hears the rows
/// is not among the parts: it forks by `device_controller::fork_async`, and hears a loaded row
/// anew.
///
/// @tparam T  of the tier
template <eviction_policy P, class T = float>
struct returning_rows {
  device_ledger<P>& ledger;
  device_rebuild<P>& rebuild;
  device_tier<T>* tier = nullptr;  ///< of schedule `restore`

  /// `to` goes on from what `from` holds; whatever it held is gone. By schedule `every` both have
  /// their turn in the same steps: where the pool is too small for that, the later row waits.
  ///
  /// Stream: asynchronous. Memory: none.
  void fork_async(cudaStream_t stream, index_t from, index_t to) {
    require_parts();
    ledger.check_row(from);
    ledger.check_row(to);
    auto const& books = ledger.view();
    detail::fork_row_async(stream, books, from, to);
    detail::fork_past_async(stream, books, from, to);
    detail::fork_guests_async(stream, rebuild.view(), books.past.tokens, from, to);
    if (tier != nullptr) tier->fork_async(stream, from, to);
  }

  /// A row as it is now. Synchronises.
  ///
  /// @param store  with `keys(layer)` and `values(layer)`: what has just been released goes from
  ///               there into the tier, if there is one
  /// @throws std::invalid_argument if what the device remembers of released tokens is less than a
  ///         snapshot holds
  template <class Store>
  row_snapshot snapshot(cudaStream_t stream, Store& store, index_t row) {
    require_parts();
    ledger.check_row(row);
    auto const& books = ledger.view();
    if (tier != nullptr) tier->stow_row_async(stream, books, row, store);
    row_snapshot saved = detail::snapshot_of(stream, books, ledger.policy(), row);
    saved.past.emplace();
    detail::save_past(stream, books, ledger.policy(), row, saved);
    detail::save_guests(stream, rebuild.view(), books.past.tokens, row, saved);
    if (tier != nullptr && saved.next > 0) tier->save(stream, row, *saved.past);
    return saved;
  }

  /// Opens `row` as it was saved, here, in another cache of the same set-up, or on the host.
  /// Whatever the row held is gone. Synchronises.
  ///
  /// @throws std::invalid_argument, with nothing changed, if the snapshot does not fit, contradicts
  ///         itself, or says what the device cannot remember
  void restore(cudaStream_t stream, index_t row, row_snapshot const& saved) {
    require_parts();
    ledger.check_row(row);
    if (!saved.past) {
      throw std::invalid_argument(
          "adore: restore: the snapshot says nothing of released tokens, which may come back in "
          "this cache");
    }
    auto const& books = ledger.view();
    row_measure const measure = detail::row_measure_of(books);
    require_sound(saved, measure);
    require_sound(*saved.past,
                  saved.next,
                  saved.positions,
                  {measure.bytes_per_slot_state,
                   static_cast<std::size_t>(books.guests),
                   tier != nullptr,
                   tier != nullptr ? tier->bytes_of_token() : 0});
    detail::require_schedule(rebuild.view(), *saved.past);
    auto const places = detail::places_for(saved, books.guests);
    auto const past = detail::past_image_of(books, ledger.policy(), saved);
    detail::restore_row(stream, books, row, saved, places);
    detail::write_past(stream, books, row, past);
    detail::load_guests(stream, rebuild.view(), books.past.tokens, row, saved, places);
    if (tier != nullptr) tier->load(stream, books.past, row, *saved.past);
  }

 private:
  void require_parts() const {
    if (rebuild.restores() == (tier != nullptr)) return;
    throw std::logic_error(rebuild.restores()
                               ? "adore: returning_rows: schedule restore needs the tier"
                               : "adore: returning_rows: a tier is of schedule restore only");
  }
};

}  // namespace adore::gpu
