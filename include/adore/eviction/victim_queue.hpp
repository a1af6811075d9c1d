// SPDX-License-Identifier: Apache-2.0
// Victims of policies whose priorities never change: rings where priorities are a few levels, a
// heap otherwise. Each step costs O(1) or O(log slots) instead of a look at every slot.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/order_key.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace adore {

/// The candidates of each lane in the order of their release, and before them the newest tokens,
/// which wait until they leave protection.
///
/// Source: policies.md 0.9 and 14, Theorem S: the kept set is the newest plus the best of the rest.
/// Memory: one index per slot for each ring; 16 bytes per slot for a heap.
template <ranks_once P>
class victim_queue {
 public:
  victim_queue() = default;
  victim_queue(index_t lanes, index_t slots) : slots_(slots) {
    auto const n = static_cast<std::size_t>(lanes);
    auto const per_lane = static_cast<std::size_t>(slots);
    rings_.resize(n * rings);
    ring_slots_.resize(n * rings * per_lane);
    if constexpr (!in_levels) {
      heaps_.resize(n * per_lane);
      heap_sizes_.resize(n);
    }
  }

  void clear(index_t lane) {
    for (index_t r = 0; r < rings; ++r) ring(lane, r) = {};
    if constexpr (!in_levels) heap_sizes_[static_cast<std::size_t>(lane)] = 0;
  }

  void copy(index_t from, index_t to) {
    for (index_t r = 0; r < rings; ++r) {
      ring(to, r) = ring(from, r);
      std::copy_n(slots_of(from, r), slots_, slots_of(to, r));
    }
    if constexpr (!in_levels) {
      heap_sizes_[static_cast<std::size_t>(to)] = heap_sizes_[static_cast<std::size_t>(from)];
      std::copy_n(heap(from), slots_, heap(to));
    }
  }

  /// A token has come; tokens must come in ascending position. Sinks are not queued.
  void arrive(index_t lane, index_t slot) { push(lane, waiting, slot); }

  /// Admits the waiting tokens that have left protection, then takes out victims: every token of
  /// priority keep_never, and the lowest until `excess` have gone, of which a NaN is the very
  /// lowest.
  ///
  /// @param excess   tokens in the lane beyond its budget; may be negative
  /// @param release  `void (index_t slot)`, called per victim in the order of their release, with
  ///                 -1 when only sinks are left
  template <class Release>
  void select(P const& policy,
              index_t lane,
              lane_slots<P> const& slots,
              lane_view const& view,
              position_t last_candidate,
              index_t excess,
              Release&& release) {
    // The last one admitted meets the heap only when it is known whether something must go: in a
    // full lane it replaces the top, or is itself the victim, and nothing is sifted twice.
    [[maybe_unused]] heap_entry newest{};
    [[maybe_unused]] bool held = false;
    index_t never_kept = 0;
    ring_state& queue = ring(lane, waiting);
    index_t const* const waiting_slots = slots_of(lane, waiting);
    while (queue.count > 0) {
      index_t const slot = waiting_slots[queue.head];
      position_t const position = slots.positions[slot];
      if (position > last_candidate) break;
      pop(lane, waiting);
      float const priority =
          priority_of(policy, slots.view(slot), view, slots.state(slot), *slots.lane_state);
      if (ordered_priority(priority) == ordered_keep_never) {
        release(slot);
        ++never_kept;
      } else if constexpr (in_levels) {
        push(lane, 1 + static_cast<index_t>(priority), slot);
      } else {
        if (held) push_heap(lane, newest);
        newest = {order_key(priority, position, releases_newest_of_equals<P>), slot};
        held = true;
      }
    }
    if constexpr (!in_levels) {
      if (never_kept > 0) {
        if (held) push_heap(lane, newest);
        held = false;
        for (; excess > 0 && top_is_nan(lane); --excess) release(pop_heap(lane));
      }
    }
    excess -= never_kept;
    if constexpr (!in_levels) {
      if (held && excess > 0) {
        release(replace_top(lane, newest));
        --excess;
      } else if (held) {
        push_heap(lane, newest);
      }
    }
    for (; excess > 0; --excess) release(pop_victim(lane));
  }

 private:
  static constexpr bool in_levels = ranks_in_levels<P> && !releases_newest_of_equals<P>;
  static constexpr index_t waiting = 0;  ///< the ring of the newest tokens
  static constexpr index_t rings = [] {
    if constexpr (in_levels) {
      return 1 + index_t{P::priority_levels};
    } else {
      return index_t{1};
    }
  }();

  struct ring_state {
    index_t head = 0, count = 0;
  };
  struct heap_entry {
    std::uint64_t key;
    index_t slot;
  };

  ring_state& ring(index_t lane, index_t which) {
    return rings_[static_cast<std::size_t>(lane * rings + which)];
  }
  index_t* slots_of(index_t lane, index_t which) {
    return ring_slots_.data() + static_cast<std::ptrdiff_t>(lane * rings + which) * slots_;
  }
  void push(index_t lane, index_t which, index_t slot) {
    ring_state& queue = ring(lane, which);
    index_t end = queue.head + queue.count;
    if (end >= slots_) end -= slots_;
    slots_of(lane, which)[end] = slot;
    ++queue.count;
  }
  index_t pop(index_t lane, index_t which) {
    ring_state& queue = ring(lane, which);
    index_t const slot = slots_of(lane, which)[queue.head];
    if (++queue.head == slots_) queue.head = 0;
    --queue.count;
    return slot;
  }

  /// The lowest candidate, else the oldest waiting token; -1 if only sinks are left.
  index_t pop_victim(index_t lane) {
    if constexpr (in_levels) {
      for (index_t r = 1; r < rings; ++r) {
        if (ring(lane, r).count > 0) return pop(lane, r);
      }
    } else {
      if (heap_sizes_[static_cast<std::size_t>(lane)] > 0) return pop_heap(lane);
    }
    return ring(lane, waiting).count > 0 ? pop(lane, waiting) : -1;
  }

  bool top_is_nan(index_t lane) {
    constexpr std::uint64_t end_of_nans = order_key(keep_never, 0);
    return heap_sizes_[static_cast<std::size_t>(lane)] > 0 && heap(lane)[0].key < end_of_nans;
  }
  heap_entry* heap(index_t lane) {
    return heaps_.data() + static_cast<std::ptrdiff_t>(lane) * slots_;
  }
  void push_heap(index_t lane, heap_entry entry) {
    heap_entry* const first = heap(lane);
    index_t hole = heap_sizes_[static_cast<std::size_t>(lane)]++;
    while (hole > 0) {
      index_t const parent = (hole - 1) / 2;
      if (first[parent].key <= entry.key) break;
      first[hole] = first[parent];
      hole = parent;
    }
    first[hole] = entry;
  }
  index_t pop_heap(index_t lane) {
    heap_entry* const first = heap(lane);
    index_t const slot = first[0].slot;
    index_t const size = --heap_sizes_[static_cast<std::size_t>(lane)];
    sift_down(first, size, first[size]);
    return slot;
  }
  /// Pushes, then pops the lowest.
  index_t replace_top(index_t lane, heap_entry entry) {
    heap_entry* const first = heap(lane);
    index_t const size = heap_sizes_[static_cast<std::size_t>(lane)];
    if (size == 0 || entry.key < first[0].key) return entry.slot;
    index_t const slot = first[0].slot;
    sift_down(first, size, entry);
    return slot;
  }
  /// Puts `entry` where it belongs below the hole at the top of first[0, size).
  static void sift_down(heap_entry* first, index_t size, heap_entry entry) {
    index_t hole = 0;
    for (index_t child = 1; child < size; child = 2 * hole + 1) {
      if (child + 1 < size) child += first[child + 1].key < first[child].key ? 1 : 0;
      if (entry.key <= first[child].key) break;
      first[hole] = first[child];
      hole = child;
    }
    first[hole] = entry;
  }

  index_t slots_ = 0;
  std::vector<ring_state> rings_;    // [lane, ring]
  std::vector<index_t> ring_slots_;  // [lane, ring, slot]
  std::vector<heap_entry> heaps_;    // [lane, slot]
  std::vector<index_t> heap_sizes_;  // [lane]
};

}  // namespace adore
