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

/// Of a lane: the queries of the first pass, K and V of the new tokens, and the books of this
/// block's share, which are its positions and their states. There are two buffers, one of them for
/// the next lane; but books of long lanes have only one, and come while the lane is attended.
template <class T, int Channels, class P>
class lane_head {
 public:
  static constexpr int row_bytes = row_cut<T, Channels>::bytes;

  /// @param heads     [2] of `plan.head_bytes` each
  /// @param books     [1 or 2] of `plan.books_bytes` each
  /// @param arrivals  [3], the last for books that come alone
  __device__ __forceinline__ lane_head(attend_plan const& plan,
                                       index_t max_new,
                                       shared_pointer heads,
                                       shared_pointer books,
                                       shared_pointer arrivals)
      : plan_(plan), heads_(heads), books_(books), arrivals_(arrivals), max_new_(max_new) {
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
      expect_bytes(bar, of_head + (plan_.doubled ? bytes_of_books(share) : 0U));
      if (plan_.doubled) {
        copy_books(ledger, ledger.lane(row, args.layer, kv_head), share, books(next), bar);
      }
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
  /// Asks for the present lane's books, if they come alone.
  __device__ __forceinline__ void request_books(ledger_view<P> const& ledger,
                                                index_t lane,
                                                lane_share const& share) {
    if (plan_.doubled || !plan_.has_books || threadIdx.x != 0) return;
    shared_pointer const bar = arrivals_ + 2 * arrival_bytes;
    expect_bytes(bar, bytes_of_books(share));
    copy_books(ledger, lane, share, books_, bar);
  }
  __device__ __forceinline__ void take_books() {
    if (plan_.doubled || !plan_.has_books) return;
    wait_for(arrivals_ + 2 * arrival_bytes, (parities_ >> 2U) & 1U);
    parities_ ^= 4U;
  }
  /// Makes what was requested last the present lane, and waits for it.
  __device__ __forceinline__ void take() {
    which_ ^= 1U;
    wait_for(arrivals_ + which_ * arrival_bytes, (parities_ >> which_) & 1U);
    parities_ ^= 1U << which_;
  }

  /// In slot `s` of the share.
  __device__ __forceinline__ position_t position(index_t s) const {
    return load_shared_4(books(which_) + static_cast<unsigned>(s) * 4U);
  }
  /// In the slots `s` to `s` + 3, where `s` is a multiple of 4.
  __device__ __forceinline__ neighbours<position_t, 4> positions(index_t s) const {
    return load_neighbours<4, position_t>([&](unsigned at) {
      return load_shared_16(books(which_) + static_cast<unsigned>(s) * 4U + at);
    });
  }
  __device__ __forceinline__ neighbours<slot_state_of<P>, 4> states(index_t s) const {
    constexpr auto bytes = static_cast<unsigned>(sizeof(slot_state_of<P>));
    return load_neighbours<4, slot_state_of<P>>([&](unsigned at) {
      return load_shared_16(books(which_) + behind_positions() + static_cast<unsigned>(s) * bytes +
                            at);
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
  __device__ __forceinline__ shared_pointer books(unsigned b) const {
    return plan_.doubled ? books_ + b * static_cast<unsigned>(plan_.books_bytes) : books_;
  }
  __device__ __forceinline__ unsigned behind_positions() const {
    return static_cast<unsigned>(plan_.block_slots) * 4U;
  }
  __device__ __forceinline__ unsigned keys() const {
    return static_cast<unsigned>(plan_.rows * row_bytes);
  }
  __device__ __forceinline__ unsigned values() const {
    return keys() + static_cast<unsigned>(max_new_ * row_bytes);
  }
  /// Whole vectors of 16 bytes: four slots at a time.
  static __device__ __forceinline__ unsigned slots_of_books(lane_share const& share) {
    return static_cast<unsigned>((share.end - share.first + 3) / 4 * 4);
  }
  __device__ __forceinline__ unsigned bytes_of_books(lane_share const& share) const {
    auto const of_state = plan_.has_states ? static_cast<unsigned>(sizeof(slot_state_of<P>)) : 0U;
    return slots_of_books(share) * (4U + of_state);
  }
  __device__ __forceinline__ void copy_books(ledger_view<P> const& ledger,
                                             index_t lane,
                                             lane_share const& share,
                                             shared_pointer to,
                                             shared_pointer bar) const {
    unsigned const slots = slots_of_books(share);
    if (slots == 0) return;
    std::uint64_t const hint = read_once_hint();
    copy_bulk(to, ledger.positions + ledger.cell(lane) + share.first, slots * 4U, bar, hint);
    if (!plan_.has_states) return;
    copy_bulk(to + behind_positions(),
              ledger.states_of(lane) + share.first,
              slots * static_cast<unsigned>(sizeof(slot_state_of<P>)),
              bar,
              hint);
  }

  attend_plan const& plan_;
  shared_pointer heads_, books_, arrivals_;
  index_t max_new_, requested_ = -1;
  unsigned which_ = 1, parities_ = 0;
};

}  // namespace adore::gpu::detail
