// SPDX-License-Identifier: Apache-2.0
// What a lane's attention needs besides K and V, fetched into shared memory before it is needed:
// when the memory is busy, whoever asks late waits for microseconds.
#pragma once

#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/warp.cuh"

#include <cstdint>
#include <type_traits>

namespace adore::gpu::detail {

/// Of a lane: the queries of the first pass, K and V of the new tokens, the states of this block's
/// share, and if it is short the positions, which `chunk_positions` reads. There are two buffers,
/// one of them for the next lane; but states of long lanes have only one, and come while the lane
/// is attended.
template <class T, int Channels, class P, class Plan>
class lane_head {
 public:
  static constexpr int row_bytes = row_cut<T, Channels>::bytes;

  /// @param heads     [2] of `plan.head_bytes` each
  /// @param states    [1 or 2] of `plan.states_bytes` each
  /// @param positions  [2] as `chunk_positions` has them
  /// @param arrivals  [3], the last for states that come alone
  __device__ __forceinline__ lane_head(Plan const& plan,
                                       index_t max_new,
                                       shared_pointer heads,
                                       shared_pointer states,
                                       shared_pointer positions,
                                       shared_pointer arrivals)
      : plan_(plan),
        heads_(heads),
        states_(states),
        positions_(positions),
        arrivals_(arrivals),
        max_new_(max_new) {
    if (threadIdx.x == 0) {
      for (unsigned b = 0; b < 3; ++b) init_arrival(arrivals + b * arrival_bytes);
      publish_arrivals();
    }
    __syncthreads();
  }

  /// Asks for a lane's head. All threads call it.
  ///
  /// @param number   names the lane
  /// @param count    of new tokens
  /// @param rebuilt  of tokens that are computed again
  template <class Args>
  __device__ __forceinline__ void request(Args const& args,
                                          ledger_view<P> const& ledger,
                                          index_t number,
                                          index_t count,
                                          index_t rebuilt,
                                          lane_share const& share) {
    requested_ = number;
    auto const j = static_cast<index_t>(threadIdx.x);
    if (j >= count + rebuilt) return;  // a thread per query
    auto const [row, kv_head] = plan_.schedule.lane(number);
    index_t token = row * ledger.max_new + j;
    if constexpr (std::remove_cvref_t<decltype(args.rebuilt)>::has_guests) {
      if (j >= count) token = args.rebuilt.tokens[row * args.rebuilt.most + j - count];
    }
    unsigned const next = which_ ^ 1U;
    shared_pointer const to = head(next);
    shared_pointer const bar = arrivals_ + next * arrival_bytes;
    index_t const first_pass = min(count + rebuilt, plan_.by_group.quotient(plan_.rows));  // tokens
    auto const query_bytes = static_cast<unsigned>(plan_.group * row_bytes);
    std::uint64_t const hint = read_once_hint();
    if (j == 0) {
      unsigned const of_head = static_cast<unsigned>(2 * count * row_bytes) +
                               static_cast<unsigned>(first_pass) * query_bytes;
      unsigned const of_positions = plan_.positions_with_head ? slots_of(share) * 4U : 0U;
      expect_bytes(bar, of_head + of_positions + (plan_.doubled ? bytes_of_states(share) : 0U));
      index_t const lane = ledger.lane(row, args.layer, kv_head);
      if (of_positions > 0) {
        copy_bulk(positions_ + next * static_cast<unsigned>(plan_.chunk_slots) * 4U,
                  ledger.positions + ledger.cell(lane) + share.first,
                  of_positions,
                  bar,
                  hint);
      }
      if (plan_.doubled) copy_states(ledger, lane, share, states(next), bar);
    }
    if (j < first_pass) {
      copy_bulk(to + static_cast<unsigned>(j) * query_bytes,
                args.q(token, kv_head * plan_.group),
                query_bytes,
                bar,
                hint);
    }
    if (j >= count) return;
    copy_bulk(to + keys() + static_cast<unsigned>(j * row_bytes),
              args.k(token, kv_head),
              row_bytes,
              bar,
              hint);
    copy_bulk(to + values() + static_cast<unsigned>(j * row_bytes),
              args.v(token, kv_head),
              row_bytes,
              bar,
              hint);
  }
  __device__ __forceinline__ index_t requested() const { return requested_; }
  /// Of the two, which the present lane's is in.
  __device__ __forceinline__ unsigned buffer() const { return which_; }
  /// Asks for the present lane's states, if they come alone.
  __device__ __forceinline__ void request_states(ledger_view<P> const& ledger,
                                                 index_t lane,
                                                 lane_share const& share) {
    if (plan_.doubled || !plan_.has_states || threadIdx.x != 0) return;
    shared_pointer const bar = arrivals_ + 2 * arrival_bytes;
    expect_bytes(bar, bytes_of_states(share));
    copy_states(ledger, lane, share, states_, bar);
  }
  __device__ __forceinline__ void take_states() {
    if (plan_.doubled || !plan_.has_states) return;
    wait_for(arrivals_ + 2 * arrival_bytes, (parities_ >> 2U) & 1U);
    parities_ ^= 4U;
  }
  /// Makes what was requested last the present lane, and waits for it.
  __device__ __forceinline__ void take() {
    which_ ^= 1U;
    wait_for(arrivals_ + which_ * arrival_bytes, (parities_ >> which_) & 1U);
    parities_ ^= 1U << which_;
  }

  /// Of the slots `s` to `s` + 3 of the share, where `s` is a multiple of 4.
  __device__ __forceinline__ neighbours<slot_state_of<P>, 4> four_states(index_t s) const {
    constexpr auto bytes = static_cast<unsigned>(sizeof(slot_state_of<P>));
    return load_neighbours<4, slot_state_of<P>>([&](unsigned at) {
      return load_shared_16(states(which_) + static_cast<unsigned>(s) * bytes + at);
    });
  }
  /// Query row `r` of the first pass.
  __device__ __forceinline__ shared_pointer query(index_t r) const {
    return head(which_) + static_cast<unsigned>(r * row_bytes);
  }
  /// K or V of new token `j`.
  __device__ __forceinline__ shared_pointer key(index_t j) const {
    return head(which_) + keys() + static_cast<unsigned>(j * row_bytes);
  }
  __device__ __forceinline__ shared_pointer value(index_t j) const {
    return head(which_) + values() + static_cast<unsigned>(j * row_bytes);
  }

 private:
  __device__ __forceinline__ shared_pointer head(unsigned b) const {
    return heads_ + b * static_cast<unsigned>(plan_.head_bytes);
  }
  __device__ __forceinline__ shared_pointer states(unsigned b) const {
    return plan_.doubled ? states_ + b * static_cast<unsigned>(plan_.states_bytes) : states_;
  }
  __device__ __forceinline__ unsigned keys() const {
    return static_cast<unsigned>(plan_.rows * row_bytes);
  }
  __device__ __forceinline__ unsigned values() const {
    return keys() + static_cast<unsigned>(max_new_ * row_bytes);
  }
  /// Whole vectors of 16 bytes: four slots at a time.
  static __device__ __forceinline__ unsigned slots_of(lane_share const& share) {
    return static_cast<unsigned>((share.end - share.first + 3) / 4 * 4);
  }
  static __device__ __forceinline__ unsigned bytes_of_states(lane_share const& share) {
    return slots_of(share) * static_cast<unsigned>(sizeof(slot_state_of<P>));
  }
  static __device__ __forceinline__ void copy_states(ledger_view<P> const& ledger,
                                                     index_t lane,
                                                     lane_share const& share,
                                                     shared_pointer to,
                                                     shared_pointer bar) {
    unsigned const bytes = bytes_of_states(share);
    if (bytes == 0) return;
    copy_bulk(to, ledger.states_of(lane) + share.first, bytes, bar, read_once_hint());
  }

  Plan const& plan_;
  shared_pointer heads_, states_, positions_, arrivals_;
  index_t max_new_, requested_ = -1;
  unsigned which_ = 1, parities_ = 0;
};

}  // namespace adore::gpu::detail
