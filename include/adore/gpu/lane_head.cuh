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

/// Of a lane: the positions in this block's share, the queries of the first pass, K and V of the
/// new tokens. With two buffers, those of the next lane are on their way meanwhile.
template <class T, int Channels>
class lane_head {
 public:
  static constexpr int row_bytes = row_cut<T, Channels>::bytes;

  static constexpr __device__ int bytes(attend_plan const& plan, index_t max_new) {
    return plan.block_slots * 4 + (plan.rows + 2 * max_new) * row_bytes;
  }

  /// @param memory    [buffer] of `bytes` each
  /// @param arrivals  [buffer]
  __device__ __forceinline__ lane_head(attend_plan const& plan,
                                       index_t max_new,
                                       shared_pointer memory,
                                       shared_pointer arrivals)
      : plan_(plan),
        memory_(memory),
        arrivals_(arrivals),
        max_new_(max_new),
        other_(plan.head_buffers - 1U),
        which_(other_) {
    if (threadIdx.x == 0) {
      for (unsigned b = 0; b < plan.head_buffers; ++b) init_arrival(arrivals + b * arrival_bytes);
      publish_arrivals();
    }
    __syncthreads();
  }

  /// Asks for a lane's head. All threads call it.
  ///
  /// @param number   names the lane
  /// @param count    of new tokens
  /// @param rebuilt  of tokens that are computed again
  template <class Args, eviction_policy P>
  __device__ __forceinline__ void request(Args const& args,
                                          ledger_view<P> const& ledger,
                                          index_t number,
                                          index_t count,
                                          index_t rebuilt,
                                          lane_share const& share) {
    requested_ = number;
    auto const j = static_cast<index_t>(threadIdx.x);
    if (j >= count + rebuilt) return;  // a thread per query
    index_t const row = number / ledger.kv_heads;
    index_t const head = number % ledger.kv_heads;
    index_t token = row * ledger.max_new + j;
    if constexpr (std::remove_cvref_t<decltype(args.rebuilt)>::has_guests) {
      if (j >= count) token = args.rebuilt.tokens[row * args.rebuilt.most + j - count];
    }
    unsigned const next = which_ ^ other_;
    shared_pointer const to = buffer(next);
    shared_pointer const bar = arrivals_ + next * arrival_bytes;
    index_t const first_pass = min(count + rebuilt, plan_.rows / plan_.group);  // tokens
    auto const query_bytes = static_cast<unsigned>(plan_.group * row_bytes);
    std::uint64_t const hint = read_once_hint();
    if (j == 0) {
      auto const bytes = static_cast<unsigned>((share.end - share.first + 3) / 4 * 16);
      expect_bytes(bar,
                   bytes + static_cast<unsigned>(2 * count * row_bytes) +
                       static_cast<unsigned>(first_pass) * query_bytes);
      if (bytes > 0) {
        copy_bulk(to,
                  ledger.positions + ledger.cell(ledger.lane(row, args.layer, head)) + share.first,
                  bytes,
                  bar,
                  hint);
      }
    }
    if (j < first_pass) {
      copy_bulk(to + queries() + static_cast<unsigned>(j) * query_bytes,
                args.q(token, head * plan_.group),
                query_bytes,
                bar,
                hint);
    }
    if (j >= count) return;
    copy_bulk(to + keys() + static_cast<unsigned>(j * row_bytes),
              args.k(token, head),
              row_bytes,
              bar,
              hint);
    copy_bulk(to + values() + static_cast<unsigned>(j * row_bytes),
              args.v(token, head),
              row_bytes,
              bar,
              hint);
  }
  __device__ __forceinline__ index_t requested() const { return requested_; }
  /// Makes what was requested last the present lane, and waits for it.
  __device__ __forceinline__ void take() {
    which_ ^= other_;
    wait_for(arrivals_ + which_ * arrival_bytes, (parities_ >> which_) & 1U);
    parities_ ^= 1U << which_;
  }

  /// In slot `s` of the share.
  __device__ __forceinline__ position_t position(index_t s) const {
    return load_shared_4(buffer(which_) + static_cast<unsigned>(s) * 4U);
  }
  /// Query row `r` of the first pass.
  __device__ __forceinline__ shared_pointer query(index_t r) const {
    return buffer(which_) + queries() + static_cast<unsigned>(r * row_bytes);
  }
  /// K or V of new token `j`.
  __device__ __forceinline__ shared_pointer key(index_t j) const {
    return buffer(which_) + keys() + static_cast<unsigned>(j * row_bytes);
  }
  __device__ __forceinline__ shared_pointer value(index_t j) const {
    return buffer(which_) + values() + static_cast<unsigned>(j * row_bytes);
  }

 private:
  __device__ __forceinline__ shared_pointer buffer(unsigned b) const {
    return memory_ + b * static_cast<unsigned>(bytes(plan_, max_new_));
  }
  __device__ __forceinline__ unsigned queries() const {
    return static_cast<unsigned>(plan_.block_slots) * 4U;
  }
  __device__ __forceinline__ unsigned keys() const {
    return queries() + static_cast<unsigned>(plan_.rows * row_bytes);
  }
  __device__ __forceinline__ unsigned values() const {
    return keys() + static_cast<unsigned>(max_new_ * row_bytes);
  }

  attend_plan const& plan_;
  shared_pointer memory_, arrivals_;
  index_t max_new_, requested_ = -1;
  unsigned other_;  // 1 if there are two buffers
  unsigned which_, parities_ = 0;
};

}  // namespace adore::gpu::detail
