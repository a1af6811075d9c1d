// SPDX-License-Identifier: Apache-2.0
// The end of a lane's step inside a kernel: the policy observes, victims are released, and slots
// are reserved for the tokens to come. By one block, or by a cluster whose blocks share the slots.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"
#include "adore/order_key.hpp"

#include <type_traits>

namespace adore::gpu {

inline constexpr index_t most_new_tokens = 16;  ///< of one row in one step, on the device

/// What a policy must leave alone to be decided here, one sentence per missing ability.
template <eviction_policy P>
struct checked_device_policy {
  static_assert(!releases_blocks<P>,
                "adore::gpu: a policy that releases whole blocks runs on the host only");
  static_assert(!reads_tokens<P>,
                "adore::gpu: a policy that reads token ids runs on the host only");
  static_assert(!marks_tokens<P>,
                "adore::gpu: a policy that marks tokens after each step runs on the host only");
  static_assert(!limits_attention<P>, "adore::gpu: dynamic top-K attention runs on the host only");
  static_assert(!recalls_tokens<P>, "adore::gpu: this cache does not recall tokens");
  using type = P;
};

/// Shared memory of a block that decides. Two of each, used in turn, so that nobody writes over
/// what others still read.
struct decision_scratch {
  static constexpr int most_warps = 4;
  keyed_slot of_warp[2][most_warps];
  keyed_slot of_block[2];
};

/// The blocks that share a lane's slots, and the part of them that is this block's: [first, end).
struct lane_share {
  unsigned rank = 0, blocks = 1;
  index_t first = 0, end = 0;
};

/// What the ledger says of a lane and its row.
struct step_books {
  row_books row;
  lane_books lane;
};
template <eviction_policy P>
__device__ __forceinline__ step_books books_at(ledger_view<P> const& ledger,
                                               index_t row,
                                               index_t lane) {
  return {ledger.rows[row], ledger.lanes[lane]};
}

namespace detail {

/// Waits for all threads that share the lane; what they wrote is then visible.
__device__ inline void sync_lane(lane_share const& share) {
  if (share.blocks > 1) {
    sync_cluster();
  } else {
    __syncthreads();
  }
}

/// The smallest key of all threads of the block, or of the cluster; all threads call and learn it.
///
/// @param turn  0 or 1, flipped by each call
__device__ inline keyed_slot smallest_in_lane(keyed_slot own,
                                              lane_share const& share,
                                              decision_scratch& shared,
                                              unsigned& turn) {
  keyed_slot best = smallest_in_warp(own);
  int const warps = warps_in_block();
  if (lane_in_warp() == 0) shared.of_warp[turn][warp_in_block()] = best;
  __syncthreads();
  best = shared.of_warp[turn][0];
  for (int w = 1; w < warps; ++w) {
    if (shared.of_warp[turn][w].key < best.key) best = shared.of_warp[turn][w];
  }
  if (share.blocks > 1) {
    if (threadIdx.x == 0) shared.of_block[turn] = best;
    sync_cluster();
    for (unsigned b = 0; b < share.blocks; ++b) {
      keyed_slot const other = *shared_of(&shared.of_block[turn], b);
      if (other.key < best.key) best = other;
    }
  }
  turn ^= 1U;
  return best;
}

/// Inverse of `ordered_priority`, but for NaN, which comes back as -infinity.
__device__ inline float priority_of_key(std::uint64_t key) {
  auto const ordered =
      static_cast<std::int32_t>(static_cast<std::uint32_t>(key >> 32U) ^ 0x80000000U);
  if (ordered < ordered_keep_never) return keep_never;
  auto const bits = static_cast<std::uint32_t>(ordered < 0 ? -ordered : ordered);
  return priority_of_bits(ordered < 0 ? bits | 0x80000000U : bits);
}

inline constexpr std::uint32_t high_of_keep_never =
    static_cast<std::uint32_t>(ordered_keep_never) ^ 0x80000000U;

}  // namespace detail

/// Ends the step of one lane. All threads of the block (of the cluster) call it.
///
/// @param books            the row's and the lane's, as they are before the decision
/// @param accepted         of the row's new tokens, how many stay; 1..count
/// @param position_of      index_t slot -> what `ledger.positions` holds, maybe from a faster place
/// @param weight_of        index_t slot -> weight of the step's accepted queries, see `observe`
/// @param squared_norm_of  index_t j -> squared norm of the j-th new key over the lane's heads
/// Source: the same rules as `adore::select`; slots for the coming tokens as in `ledger_view`.
/// Cost:   reads positions, reads and writes states of observing policies; nothing for policies
///         of one level below their budget.
template <eviction_policy P, class PositionOf, class WeightOf, class SquaredNormOf>
__device__ void decide_lane(ledger_view<P> const& ledger,
                            P const& policy,
                            index_t row,
                            index_t layer,
                            index_t kv_head,
                            step_books const& books,
                            index_t accepted,
                            lane_share const& share,
                            PositionOf&& position_of,
                            WeightOf&& weight_of,
                            SquaredNormOf&& squared_norm_of,
                            decision_scratch& shared) {
  using slot_state = slot_state_of<P>;
  constexpr bool has_state = !std::is_empty_v<slot_state>;
  constexpr bool has_lane_state = !std::is_empty_v<lane_state_of<P>>;
  constexpr bool one_level = [] {
    if constexpr (ranks_in_levels<P>) return P::priority_levels == 1;
    return false;
  }();
  index_t const lane = ledger.lane(row, layer, kv_head);
  lane_books const& book = books.lane;
  row_books const& sequence = books.row;
  position_t const next = sequence.next;
  position_t* const positions = ledger.positions + ledger.cell(lane);
  slot_state* const states = ledger.states_of(lane);
  lane_state_of<P> lane_state = *ledger.lane_state(lane);
  lane_view view{next + accepted - 1,
                 book.occupied + accepted,
                 book.budget,
                 ledger.reach == scope::model ? 0 : layer,
                 ledger.reach == scope::kv_head ? kv_head : 0,
                 sequence.seed};
  candidate_range const range = candidates_of(policy, view);
  bool const leads = share.rank == 0 && threadIdx.x == 0;
  unsigned turn = 0;

  auto const key_of = [&](index_t s, position_t p, slot_state const& state) -> keyed_slot {
    if (p < range.first || p > range.last) return {no_key, -1};
    return {order_key(priority_of(policy, slot_view{p, p}, view, state, lane_state),
                      p,
                      releases_newest_of_equals<P>),
            s};
  };
  // each thread looks at the same slots every time, so that it sees what it wrote
  auto const lowest_of = [&](auto&& visit) {
    keyed_slot best{no_key, -1};
    for (index_t s = share.first + static_cast<index_t>(threadIdx.x); s < share.end;
         s += static_cast<index_t>(blockDim.x)) {
      position_t const p = positions[s];
      if (p < 0 || p > view.newest) continue;
      keyed_slot const candidate = visit(s, p);
      if (candidate.key < best.key) best = candidate;
    }
    return detail::smallest_in_lane(best, share, shared, turn);
  };
  auto const lowest_again = [&] {
    return lowest_of(
        [&](index_t s, position_t p) { return key_of(s, p, states[has_state ? s : 0]); });
  };

  auto const reserve = [&](index_t slot, position_t coming) {
    positions[slot] = coming;
    if constexpr (scores_tokens<P>) states[slot] = {};  // its score comes before it does
  };
  index_t extent = book.extent;
  index_t const end_of_tokens = ledger.slots - ledger.guests;
  index_t holes = min(extent, end_of_tokens) - book.occupied - ledger.max_new;
  index_t freed[most_new_tokens];  // in the leader: slots to reserve anew
  index_t freed_count = 0;
  if (observes_attention<P> || has_state || !one_level || view.occupied > view.budget) {
    // four slots at once per thread, so that their loads overlap
    constexpr index_t batch = 4;
    auto const threads = static_cast<index_t>(blockDim.x);
    keyed_slot lowest{no_key, -1};
    for (index_t from = share.first + static_cast<index_t>(threadIdx.x); from < share.end;
         from += batch * threads) {
      position_t p[batch];
      slot_state state[batch];
#pragma unroll
      for (index_t i = 0; i < batch; ++i) {
        index_t const s = from + i * threads;
        p[i] = s < share.end ? position_of(s) : no_position;
        if constexpr (has_state) state[i] = states[s < share.end ? s : from];
      }
#pragma unroll
      for (index_t i = 0; i < batch; ++i) {
        index_t const s = from + i * threads;
        if (p[i] < 0 || p[i] > view.newest) continue;
        if constexpr (has_state) {
          bool const fresh = p[i] >= next;
          if (fresh) {
            // the state of a reserved slot is empty, or holds the score that the token came with
            if constexpr (!scores_tokens<P>) state[i] = {};
            if constexpr (scores_keys<P>) policy.score_key(state[i], squared_norm_of(p[i] - next));
          }
          if constexpr (observes_attention<P>) {
            policy.observe(state[i], slot_view{p[i], p[i]}, view, weight_of(s), accepted);
          }
          if (observes_attention<P> || fresh) states[s] = state[i];
        }
        keyed_slot const candidate = key_of(s, p[i], state[i]);
        if (candidate.key < lowest.key) lowest = candidate;
      }
    }
    lowest = detail::smallest_in_lane(lowest, share, shared, turn);

    auto const position_in = [&](keyed_slot which) {
      auto const low = static_cast<std::uint32_t>(which.key);
      return static_cast<position_t>(releases_newest_of_equals<P> ? ~low : low);
    };
    auto const tell = [&](position_t p, index_t slot) {
      if (p < ledger.past.tokens) {
        std::int64_t const place = std::int64_t{row} * ledger.past.tokens + p;
        ledger.past.released[place] = 1;
        unsigned const order = ledger.past.departed[row]++;
        if (order < unsigned{most_departures}) {
          ledger.past.departures[row * most_departures + static_cast<index_t>(order)] = {p, slot};
        }
        if constexpr (!scores_tokens<P>) {
          ledger.past.priorities[place] =
              priority_of(policy, slot_view{p, p}, view, states[has_state ? slot : 0], lane_state);
        }
      }
      if (ledger.released.capacity == 0) return;
      unsigned long long const before = atomicAdd(ledger.released.written, 1ULL);
      ledger.released.entries[before % ledger.released.capacity] = {
          before + 1, row, lane, p, next + accepted - 1};
    };
    if (!relents<P> && ledger.max_new == 1 && view.occupied - 1 == view.budget &&
        lowest.slot >= 0 &&
        static_cast<std::uint32_t>(lowest.key >> 32U) > detail::high_of_keep_never) {
      // every step of a full lane: the next token takes the victim's slot, the books stay as they
      // are
      if (leads) {
        tell(position_in(lowest), lowest.slot);
        reserve(lowest.slot, next + 1);
        ledger.new_slots[lane] = lowest.slot;
      }
      return;
    }

    // Who looks again must not meet a token that is gone; the last one is left to the leader.
    keyed_slot last{no_key, -1};
    auto const free_last = [&] {
      if (last.slot >= share.first && last.slot < share.end &&
          (last.slot - share.first) % static_cast<index_t>(blockDim.x) ==
              static_cast<index_t>(threadIdx.x)) {
        positions[last.slot] = no_position;
      }
    };
    auto const release = [&](keyed_slot gone, position_t p) {
      last = gone;
      if (leads && freed_count < most_new_tokens) {
#pragma unroll
        for (index_t i = 0; i < most_new_tokens; ++i) {  // keeps `freed` in registers
          if (i == freed_count) freed[i] = gone.slot;
        }
      }
      ++freed_count;
      --view.occupied;
      if (leads) tell(p, gone.slot);
    };
    for (;;) {
      bool const over = view.occupied > view.budget;
      if (lowest.slot < 0) {
        if (!over) break;
        // only protected tokens are left: the newest lose before the first, oldest first
        keyed_slot const oldest = lowest_of([&](index_t s, position_t p) -> keyed_slot {
          std::uint64_t const first_ones_last = p < range.first ? 1U : 0U;
          return {(first_ones_last << 32U) | static_cast<std::uint32_t>(p), s};
        });
        release(oldest, static_cast<position_t>(static_cast<std::uint32_t>(oldest.key)));
        free_last();
        continue;
      }
      auto const rank = static_cast<std::uint32_t>(lowest.key >> 32U);
      if (!over && rank > detail::high_of_keep_never) break;
      if (!over && rank < detail::high_of_keep_never) {
        // a NaN stays below the budget, but it must not hide what is never kept
        lowest = lowest_of([&](index_t s, position_t p) {
          keyed_slot const candidate = key_of(s, p, states[has_state ? s : 0]);
          bool const never =
              static_cast<std::uint32_t>(candidate.key >> 32U) == detail::high_of_keep_never;
          return never ? candidate : keyed_slot{no_key, -1};
        });
        if (lowest.slot < 0) break;
      }
      if constexpr (relents<P>) {
        // a change after which all candidates are worth as much as before is taken back
        if (over) {
          lane_state_of<P> const before = lane_state;
          keyed_slot now = lowest;
          while (now.key >> 32U == lowest.key >> 32U) {
            if (!policy.relent(lane_state, view, detail::priority_of_key(now.key))) {
              lane_state = before;
              now = lowest;
              break;
            }
            now = lowest_again();
          }
          lowest = now;
        }
      }
      release(lowest, position_in(lowest));
      if (view.occupied <= view.budget &&
          static_cast<std::uint32_t>(lowest.key >> 32U) > detail::high_of_keep_never) {
        break;
      }
      free_last();
      lowest = lowest_again();
    }
    if (leads && last.slot >= 0) positions[last.slot] = no_position;

    if (freed_count > 1) detail::sync_lane(share);  // all are free before the leader reserves them
  }

  // Slots for the positions next + max_new .. next + max_new + accepted - 1: those just freed, then
  // older holes, then such as were never used.
  for (index_t i = 0; i < accepted; ++i) {
    index_t slot = -1;
    if (i < freed_count) {
#pragma unroll
      for (index_t k = 0; k < most_new_tokens; ++k) {
        if (k == i) slot = freed[k];
      }
    } else if (holes > 0) {
      keyed_slot hole{no_key, -1};
      for (index_t s = share.first + static_cast<index_t>(threadIdx.x); s < share.end;
           s += static_cast<index_t>(blockDim.x)) {
        if (hole.slot < 0 && __ldcg(positions + s) == no_position) {
          hole = {static_cast<std::uint64_t>(s), s};
        }
      }
      slot = detail::smallest_in_lane(hole, share, shared, turn).slot;
      --holes;
    } else if (extent < end_of_tokens) {
      slot = extent++;
    }
    if (leads) {
      position_t const coming = next + ledger.max_new + i;
      ledger.new_slots[lane * ledger.max_new + coming % ledger.max_new] = slot;
      if (slot >= 0) {
        reserve(slot, coming);
      } else {
        atomicAdd(ledger.lanes_without_room, 1U);
      }
    }
    if (holes > 0) detail::sync_lane(share);  // the next search must see this reservation
  }
  if (leads) {
    ledger.lanes[lane] = {view.occupied, extent, book.budget};
    if constexpr (has_lane_state) *ledger.lane_state(lane) = lane_state;
  }
}

}  // namespace adore::gpu
