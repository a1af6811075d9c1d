// SPDX-License-Identifier: Apache-2.0
// What the host learns of releases: a ring in device memory that kernels write and the host reads
// when it likes.
#pragma once

#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::gpu {

/// The last `capacity` releases of all lanes of a ledger; 0 keeps none.
class release_ring {
 public:
  release_ring() = default;
  explicit release_ring(unsigned capacity) : entries_(capacity), written_(1) {
    check(cudaMemset(entries_.data(), 0, entries_.bytes()));
    check(cudaMemset(written_.data(), 0, written_.bytes()));
  }

  ring_view view() noexcept {
    return {entries_.data(), written_.data(), static_cast<unsigned>(entries_.size())};
  }
  std::size_t bytes() const noexcept { return entries_.bytes() + written_.bytes(); }

  /// Releases since the beginning. Synchronises.
  std::uint64_t written(cudaStream_t stream) const { return written_.to_host(stream)[0]; }

  /// Those after number `from`, see `device_ledger::released_since`.
  std::vector<released_entry> since(cudaStream_t stream, std::uint64_t from) const {
    std::uint64_t const capacity = entries_.size();
    if (capacity == 0) {
      throw std::logic_error(
          "adore: device_ledger: released_since: the ledger was made without a ring");
    }
    std::uint64_t const there = written(stream);
    if (from > there) {
      throw std::invalid_argument(
          "adore: device_ledger: released_since: from = " + std::to_string(from) + ": there were " +
          std::to_string(there) + " releases");
    }
    std::vector<released_entry> entries;
    if (from == there) return entries;
    auto const ring = entries_.to_host(stream);
    std::uint64_t const meanwhile = written(stream);  // these may have been written over
    if (meanwhile - from > capacity) {
      throw std::runtime_error("adore: " + std::to_string(meanwhile - from) +
                               " releases since the last look, the ring holds " +
                               std::to_string(capacity) +
                               "; ask `kept` for the lanes, or make the ring larger");
    }
    for (std::uint64_t n = from; n < there; ++n) {
      released_entry const& entry = ring[n % capacity];
      if (entry.number != n + 1 || entry.number_again != n + 1) break;  // not yet
      entries.push_back(entry);
    }
    return entries;
  }

 private:
  device_buffer<released_entry> entries_;
  device_buffer<unsigned long long> written_;  // [1]
};

}  // namespace adore::gpu
