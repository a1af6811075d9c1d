// SPDX-License-Identifier: Apache-2.0
// K/V in device memory in pages, and the page table that says whose they are.
#pragma once

#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/paged_view.cuh"
#include "adore/invalid_field.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

namespace adore::gpu {

/// Two arrays of pages per layer, and one page table for all layers: which page belongs to which
/// sequence is somebody else's to decide, on the host, and told here. What kernels are given stays
/// valid: a captured graph replays with the table of the day.
///
/// As with `device_store` bytes are not set, and there is no `release`.
///
/// @tparam T  float, __half or __nv_bfloat16
/// Memory: five cudaMalloc at construction.
template <class T>
class device_pages {
 public:
  using value_type = T;
  static constexpr scope finest_scope = scope::kv_head;

  /// @param shape  slots are the most of one sequence
  /// @param pages  of all sequences together
  /// @throws std::invalid_argument if there are no pages or a page has no slots, cuda_error if the
  ///         device has not enough memory
  device_pages(kv_shape const& shape, index_t pages, index_t page_size, page_layout layout)
      : shape_(shape),
        pages_(checked(pages, "pages")),
        page_size_(checked(page_size, "page_size")),
        layout_(layout),
        layer_size_(static_cast<std::size_t>(pages) * static_cast<std::size_t>(page_size) *
                    static_cast<std::size_t>(shape.kv_heads) *
                    static_cast<std::size_t>(shape.channels)),
        keys_(layer_size_ * static_cast<std::size_t>(shape.layers)),
        values_(keys_.size()),
        indices_(static_cast<std::size_t>(shape.sequences) * most_pages()),
        indptr_(static_cast<std::size_t>(shape.sequences) + 1),
        last_page_len_(static_cast<std::size_t>(shape.sequences)) {
    indices_.fill_async(0, nullptr);  // rows without a table have page 0
    indptr_.fill_async(0, nullptr);
    last_page_len_.fill_async(0, nullptr);
    check(cudaDeviceSynchronize());
  }

  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return page_size_; }
  index_t pages() const noexcept { return pages_; }
  std::size_t allocated_bytes() const noexcept { return keys_.bytes() + values_.bytes(); }

  /// Says which pages each sequence has. None to begin with; who writes to a slot for which its
  /// sequence has no page writes to another's.
  ///
  /// @param indices        [indptr[sequences]] page numbers, sequence after sequence; any page
  ///                       where no slot is in use: it may be read, and what it holds does not
  ///                       matter
  /// @param indptr         [sequences + 1] where a sequence's numbers begin
  /// @param last_page_len  [sequence] slots in use in its last page, 1..page_size; 0 without pages
  /// @throws std::invalid_argument, with nothing changed, if the arrays contradict each other or
  ///         the shape
  /// Stream: three copies, which read the arrays before this returns if they are pageable memory.
  void set_table_async(cudaStream_t stream,
                       std::span<index_t const> indices,
                       std::span<index_t const> indptr,
                       std::span<index_t const> last_page_len) {
    require_table(indices, indptr, last_page_len);
    indices_.copy_from_async(indices, stream);
    indptr_.copy_from_async(indptr, stream);
    last_page_len_.copy_from_async(last_page_len, stream);
  }

  paged_view<T> keys(index_t layer) noexcept { return view(keys_, layer); }
  paged_view<T> values(index_t layer) noexcept { return view(values_, layer); }

 private:
  [[noreturn]] static void refuse(std::string const& what, index_t value, std::string const& why) {
    throw std::invalid_argument("adore: device_pages: " + what + " = " + std::to_string(value) +
                                ": " + why);
  }
  static index_t checked(index_t count, char const* what) {
    require_field(count >= 1, what, count, "a device_pages needs at least one");
    return count;
  }
  std::size_t most_pages() const {
    return static_cast<std::size_t>((shape_.slots + page_size_ - 1) / page_size_);
  }
  void require_table(std::span<index_t const> indices,
                     std::span<index_t const> indptr,
                     std::span<index_t const> last_page_len) const {
    auto const sequences = static_cast<std::size_t>(shape_.sequences);
    require_field(indptr.size() == sequences + 1,
                  "indptr.size()",
                  indptr.size(),
                  "must be one more than sequences");
    require_field(last_page_len.size() == sequences,
                  "last_page_len.size()",
                  last_page_len.size(),
                  "must be the number of sequences");
    require_field(indptr[0] == 0, "indptr[0]", indptr[0], "must be 0");
    for (std::size_t row = 0; row < sequences; ++row) {
      index_t const count = indptr[row + 1] - indptr[row];
      auto const of_row = [row](char const* what) {
        return std::string(what) + " of sequence " + std::to_string(row);
      };
      if (count < 0 || static_cast<std::size_t>(count) > most_pages()) {
        refuse(of_row("pages"), count, "must be 0 to " + std::to_string(most_pages()));
      }
      index_t const last = last_page_len[row];
      if (count == 0 ? last != 0 : last < 1 || last > page_size_) {
        refuse(of_row("last_page_len"),
               last,
               count == 0 ? "must be 0, there is no page"
                          : "must be 1 to " + std::to_string(page_size_));
      }
      if (count > 0 && (count - 1) * page_size_ + last > shape_.slots) {
        refuse(of_row("last_page_len"),
               last,
               "with the pages before it is more than the " + std::to_string(shape_.slots) +
                   " slots of a sequence");
      }
    }
    require_field(static_cast<std::size_t>(indptr[sequences]) == indices.size(),
                  "indices.size()",
                  indices.size(),
                  "must be the last of indptr");
    for (std::size_t i = 0; i < indices.size(); ++i) {
      if (indices[i] >= 0 && indices[i] < pages_) continue;
      refuse("indices[" + std::to_string(i) + "]",
             indices[i],
             "there are pages 0 to " + std::to_string(pages_ - 1));
    }
  }
  paged_view<T> view(device_buffer<T>& data, index_t layer) noexcept {
    return {data.data() + layer_size_ * static_cast<std::size_t>(layer),
            layout_,
            shape_.sequences,
            shape_.kv_heads,
            shape_.slots,
            shape_.channels,
            page_size_,
            indices_.data(),
            indptr_.data(),
            last_page_len_.data()};
  }

  kv_shape shape_;
  index_t pages_, page_size_;
  page_layout layout_;
  std::size_t layer_size_;  // elements
  device_buffer<T> keys_, values_;
  device_buffer<index_t> indices_, indptr_, last_page_len_;
};

}  // namespace adore::gpu
