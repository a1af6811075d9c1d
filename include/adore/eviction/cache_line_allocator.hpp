// SPDX-License-Identifier: Apache-2.0
// Memory that begins at a cache line, for arrays that are read by whole vectors: one that straddles
// two lines costs a second access, which a pass over a lane feels as a sixth of its time.
#pragma once

#include <cstddef>
#include <new>

namespace adore {

inline constexpr std::size_t cache_line_bytes = 64;

/// The least count of T that fills whole cache lines and holds `count`: the stride of rows that
/// begin at one.
template <class T, class Count>
constexpr Count whole_cache_lines(Count count) noexcept {
  constexpr auto per_line = static_cast<Count>(cache_line_bytes / sizeof(T));
  return (count + per_line - 1) / per_line * per_line;
}

template <class T>
struct cache_line_allocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{alignof(T) > cache_line_bytes ? alignof(T)
                                                                            : cache_line_bytes};

  cache_line_allocator() = default;
  template <class Other>
  cache_line_allocator(cache_line_allocator<Other> const&) noexcept {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), alignment));
  }
  void deallocate(T* memory, std::size_t) noexcept { ::operator delete(memory, alignment); }

  friend bool operator==(cache_line_allocator const&, cache_line_allocator const&) = default;
};

}  // namespace adore
