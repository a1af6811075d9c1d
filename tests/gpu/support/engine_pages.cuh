// SPDX-License-Identifier: Apache-2.0
// An engine's pages: sequences take more of them as they grow.
#pragma once

#include <adore/gpu/device_pages.cuh>
#include <adore/gpu/error.cuh>
#include <adore/types.hpp>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <random>
#include <vector>

namespace adore::testing {

/// Each sequence owns pages enough for `shape.slots`, all over the place, and uses those that its
/// length needs. Slots begin without numbers in them, so that whoever reads a free one is found
/// out.
template <class T>
class engine_pages {
 public:
  engine_pages(kv_shape const& shape, index_t page_size, gpu::page_layout layout)
      : page_size_(page_size),
        per_row_((shape.slots + page_size - 1) / page_size),
        numbers_(static_cast<std::size_t>(shape.sequences * per_row_)),
        store_(shape, shape.sequences * per_row_, page_size, layout) {
    std::iota(numbers_.begin(), numbers_.end(), 0);
    std::mt19937 random(11);
    std::shuffle(numbers_.begin(), numbers_.end(), random);
    gpu::check(cudaMemset(store_.keys(0).data, 0xFF, store_.allocated_bytes() / 2));
    gpu::check(cudaMemset(store_.values(0).data, 0xFF, store_.allocated_bytes() / 2));
    gpu::check(cudaDeviceSynchronize());
  }

  /// Gives the sequences so many slots.
  ///
  /// @returns [sequence + 1] where a sequence's page numbers begin
  std::vector<index_t> resize_async(cudaStream_t stream, std::vector<index_t> const& lengths) {
    std::vector<index_t> table, ranges{0}, ends;
    auto own = numbers_.begin();
    for (index_t const length : lengths) {
      table.insert(table.end(), own, own + (length + page_size_ - 1) / page_size_);
      own += per_row_;
      ranges.push_back(static_cast<index_t>(table.size()));
      ends.push_back(length == 0 ? 0 : (length - 1) % page_size_ + 1);
    }
    store_.set_table_async(stream, table, ranges, ends);
    return ranges;
  }
  gpu::device_pages<T>& store() noexcept { return store_; }

 private:
  index_t page_size_, per_row_;
  std::vector<index_t> numbers_;  // [sequence, page of the sequence]
  gpu::device_pages<T> store_;
};

}  // namespace adore::testing
