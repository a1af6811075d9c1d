// SPDX-License-Identifier: Apache-2.0
// From the warps' shares of a lane to its output and log-sum-exp: the warps of a block are merged
// chunk by chunk, then the chunks, in the block or across those that share the lane.
#pragma once

#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/fragments.cuh"
#include "adore/gpu/lane_rows.cuh"
#include "adore/gpu/lane_share.cuh"
#include "adore/gpu/warp.cuh"

#include <cstdint>

namespace adore::gpu::detail {

template <class T, int Channels, int QueryRows, class View, class Guests, class Plan>
class lane_softmax {
 public:
  __device__ __forceinline__ lane_softmax(attend_args<T, View, Guests> const& args,
                                          Plan const& plan,
                                          unsigned char* dynamic,
                                          attend_shared<QueryRows>& shared)
      : args_(args),
        plan_(plan),
        rows_(args, plan),
        shared_(shared),
        dynamic_(dynamic),
        parts_(reinterpret_cast<float*>(dynamic + plan.parts)),
        chunk_parts_(reinterpret_cast<float*>(dynamic + plan.chunk_parts)),
        chunk_peaks_(reinterpret_cast<float2*>(dynamic + plan.chunk_peaks)) {}

  /// Where this warp leaves the outputs of a row: [channel].
  __device__ __forceinline__ float* part(index_t r) const {
    return parts_ + (warp_in_block() * plan_.rows + r) * Channels;
  }
  /// What they are relative to, and the sum of the row's exponentials.
  ///
  /// @param peak  `keep_never` if the warp has seen nothing
  __device__ __forceinline__ void set_peak(index_t r, float peak, float sum) {
    shared_.warp_peak[warp_in_block()][r] = {peak, sum};
  }

  /// Of several chunks: merges the warps' parts of one, and tells all blocks its peaks.
  __device__ __forceinline__ void close_chunk(lane_of_step const& of, index_t pass, index_t chunk) {
    index_t const warps = warps_in_block();
    index_t const warp = warp_in_block();
    auto const thread = static_cast<index_t>(threadIdx.x);
    auto const threads = static_cast<index_t>(blockDim.x);
    index_t const rows = rows_.rows(of, pass);
    index_t const local = chunk - static_cast<index_t>(of.share.rank) * plan_.block_chunks;
    lane_exchange const exchange = of.share.exchange;
    // each warp finds the peaks of all rows, and tells one block
    for_merged<8>(&shared_.warp_peak[0][0], warps, rows, [&](index_t r, softmax_so_far const& all) {
      shared_.lse[warp][r] = all.highest;
      float2 const peak{all.highest, all.sum};
      if (exchange.there()) {
        if (warp == 0) exchange.peaks()[chunk * peaks_apart + r] = peak;
        return;
      }
      for (index_t b = warp; b < static_cast<index_t>(of.share.blocks); b += warps) {
        *shared_of(chunk_peaks_ + chunk * peaks_apart + r, static_cast<unsigned>(b)) = peak;
      }
    });
    float* const parts = exchange.there() ? exchange.parts() + chunk * plan_.rows * Channels
                                          : chunk_parts_ + local * plan_.rows * Channels;
#pragma unroll 1
    for (index_t i = thread; i < rows * pairs; i += threads) {
      index_t const r = i / pairs;
      index_t const c = i % pairs * 2;
      *reinterpret_cast<float2*>(parts + r * Channels + c) =
          sum_of_warps(r, c, shared_.lse[warp][r]);
    }
    if (local + 1 < plan_.block_chunks) {
      __syncthreads();
      return;
    }
    sync_lane(of.share);
    if (!exchange.there()) return;
    for (index_t i = thread; i < plan_.chunks * peaks_apart; i += threads) {
      chunk_peaks_[i] = exchange.peaks()[i];
    }
    __syncthreads();
  }

  /// Each warp learns the rows' log-sum-exp; then outputs are written.
  __device__ __forceinline__ void merge(lane_of_step const& of, index_t pass) {
    if (plan_.chunks > most_serial_chunks) {
      merge_out_of_line(args_, plan_, dynamic_, shared_, of, pass);
      return;
    }
    index_t const warp = warp_in_block();
    lane_share const& share = of.share;
    index_t const rows = rows_.rows(of, pass);
    bool const one_chunk = plan_.chunks == 1;
    for_merged<8>(one_chunk ? &shared_.warp_peak[0][0] : chunk_peaks_,
                  one_chunk ? warps_in_block() : plan_.chunks,
                  rows,
                  [&](index_t r, softmax_so_far const& all) { learn(of, pass, r, all); });
    auto const threads = static_cast<index_t>(blockDim.x);
#pragma unroll 1
    for (index_t i = static_cast<index_t>(share.rank) * threads + static_cast<index_t>(threadIdx.x);
         i < rows * pairs;
         i += static_cast<index_t>(share.blocks) * threads) {
      index_t const r = i / pairs;
      index_t const c = i % pairs * 2;
      float const lse = shared_.lse[warp][r];
      put(of, pass, r, c, one_chunk ? sum_of_warps(r, c, lse) : sum_of_chunks(share, r, c, lse));
    }
  }

 private:
  static constexpr index_t pairs = Channels / 2;     // of channels
  static constexpr index_t peaks_apart = QueryRows;  // those of warps, and of chunks
  static constexpr index_t most_serial_chunks = 16;  // that a thread adds up
  static_assert(attend_warps_at_most <= 2 * 8 && most_serial_chunks <= 2 * 8 &&
                    most_chunks <= 2 * warp_threads,
                "adore::gpu: `for_merged` takes twice as many sources as threads side by side");
  static_assert(QueryRows <= lane_exchange::most_rows);

  struct softmax_so_far {
    float highest, sum;  // base 2
  };

  /// Not inlined, since other launches would fetch its code, too.
  static __device__ __noinline__ void merge_out_of_line(attend_args<T, View, Guests> const& args,
                                                        Plan const& plan,
                                                        unsigned char* dynamic,
                                                        attend_shared<QueryRows>& shared,
                                                        lane_of_step of,
                                                        index_t pass) {
    lane_softmax(args, plan, dynamic, shared).merge_many(of, pass);
  }
  /// `merge` of many chunks, whose parts come from far: threads that wait side by side share a pair
  /// of channels.
  __device__ __forceinline__ void merge_many(lane_of_step const& of, index_t pass) {
    constexpr index_t together = 16;  // threads
    static_assert(pairs % (warp_threads / together) == 0);
    index_t const warp = warp_in_block();
    lane_share const& share = of.share;
    index_t const rows = rows_.rows(of, pass);
    for_merged<warp_threads>(
        chunk_peaks_, plan_.chunks, rows, [&](index_t r, softmax_so_far const& all) {
          learn(of, pass, r, all);
        });
    auto const threads = static_cast<index_t>(blockDim.x) / together;
    index_t const own = lane_in_warp() % together;
#pragma unroll 1
    for (index_t i = static_cast<index_t>(share.rank) * threads +
                     static_cast<index_t>(threadIdx.x) / together;
         i < rows * pairs;
         i += static_cast<index_t>(share.blocks) * threads) {
      index_t const r = i / pairs;
      index_t const c = i % pairs * 2;
      float2 x{0.0F, 0.0F};
#pragma unroll 4
      for (index_t chunk = own; chunk < plan_.chunks; chunk += together) {
        add_chunk(x, share, chunk, r, c, shared_.lse[warp][r]);
      }
#pragma unroll
      for (int width = 1; width < together; width *= 2) {
        x.x += __shfl_xor_sync(whole_warp, x.x, width);
        x.y += __shfl_xor_sync(whole_warp, x.y, width);
      }
      if (own == 0) put(of, pass, r, c, x);
    }
  }

  /// Keeps the log-sum-exp of a row for this warp, and writes it if it is asked for.
  __device__ __forceinline__ void learn(lane_of_step const& of,
                                        index_t pass,
                                        index_t r,
                                        softmax_so_far const& all) {
    float const lse = all.highest + log2f(all.sum);
    // weights of a row that has seen nothing are 0, not NaN
    shared_.lse[warp_in_block()][r] = all.sum > 0.0F ? lse : 0.0F;
    if (args_.lse == nullptr || of.share.rank != 0 || warp_in_block() != 0) return;
    index_t const at = pass * plan_.rows + r;
    index_t const token = rows_.token_of(of, rows_.query_of(at));
    args_.lse[static_cast<std::int64_t>(token) * args_.q.heads + rows_.head_of(of, at)] =
        lse * 0.6931471805599453F;
  }
  /// Writes two channels of a row's output.
  __device__ __forceinline__ void put(
      lane_of_step const& of, index_t pass, index_t r, index_t c, float2 x) const {
    index_t const at = pass * plan_.rows + r;
    T* const to = args_.out(rows_.token_of(of, rows_.query_of(at)), rows_.head_of(of, at)) + c;
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<unsigned*>(to) = matrix_unit<T>::pack(x.x, x.y);
    } else {
      *reinterpret_cast<float2*>(to) = x;
    }
  }

  /// Outputs of row `r` in a chunk of the lane, which may be another block's.
  __device__ __forceinline__ float const* part_of_chunk(lane_share const& share,
                                                        index_t chunk,
                                                        index_t r) const {
    if (share.exchange.there()) {
      return share.exchange.parts() + (chunk * plan_.rows + r) * Channels;
    }
    index_t const local = chunk & (plan_.block_chunks - 1);  // powers of two
    return shared_of(chunk_parts_ + (local * plan_.rows + r) * Channels,
                     static_cast<unsigned>((chunk * plan_.blocks) >> plan_.chunk_shift));
  }

  /// Merges the peaks of each row, and calls `use(row, merged)` in a thread of the warp per row.
  /// All threads of the warp call it, and what `use` wrote is then visible to them.
  ///
  /// @param peaks    [source, row], sources `peaks_apart` from each other
  /// @param sources  at most twice `Beside`
  /// @tparam Beside  threads, each with up to two sources of a row
  template <index_t Beside, class Use>
  __device__ __forceinline__ void for_merged(float2 const* peaks,
                                             index_t sources,
                                             index_t rows,
                                             Use&& use) const {
    index_t const own = lane_in_warp() % Beside;
#pragma unroll 1
    for (index_t first = 0; first < rows; first += warp_threads / Beside) {
      index_t const r = first + lane_in_warp() / Beside;
      float2 of[2];
#pragma unroll
      for (index_t k = 0; k < 2; ++k) {
        index_t const source = own + k * Beside;
        of[k] = r < rows && source < sources ? peaks[source * peaks_apart + r]
                                             : float2{keep_never, 0.0F};
      }
      softmax_so_far all{fmaxf(of[0].x, of[1].x), 0.0F};
#pragma unroll
      for (int width = 1; width < Beside; width *= 2) {
        all.highest = fmaxf(all.highest, __shfl_xor_sync(whole_warp, all.highest, width));
      }
#pragma unroll
      for (float2 const& peak : of) {
        if (peak.x != keep_never) all.sum += exp2_fast(peak.x - all.highest) * peak.y;
      }
#pragma unroll
      for (int width = 1; width < Beside; width *= 2) {
        all.sum += __shfl_xor_sync(whole_warp, all.sum, width);
      }
      if (own == 0 && r < rows) use(r, all);
    }
    __syncwarp();
  }
  /// The chunks' outputs of two channels of a row, relative to `to`.
  __device__ __forceinline__ float2 sum_of_chunks(lane_share const& share,
                                                  index_t r,
                                                  index_t c,
                                                  float to) const {
    float2 x{0.0F, 0.0F};
    // some at once, since each comes from far
#pragma unroll 4
    for (index_t chunk = 0; chunk < plan_.chunks; ++chunk) add_chunk(x, share, chunk, r, c, to);
    return x;
  }
  __device__ __forceinline__ void add_chunk(
      float2& sum, lane_share const& share, index_t chunk, index_t r, index_t c, float to) const {
    add_part(sum,
             chunk_peaks_[chunk * peaks_apart + r].x,
             to,
             *reinterpret_cast<float2 const*>(part_of_chunk(share, chunk, r) + c));
  }
  /// The warps' outputs of two channels of a row, relative to `to`.
  __device__ __forceinline__ float2 sum_of_warps(index_t r, index_t c, float to) const {
    float2 x{0.0F, 0.0F};
#pragma unroll 2
    for (index_t w = 0; w < warps_in_block(); ++w) {
      add_part(x,
               shared_.warp_peak[w][r].x,
               to,
               *reinterpret_cast<float2 const*>(parts_ + (w * plan_.rows + r) * Channels + c));
    }
    return x;
  }
  /// Adds outputs that are relative to `peak` to those relative to `to`.
  static __device__ __forceinline__ void add_part(float2& sum, float peak, float to, float2 part) {
    float const factor = peak == keep_never ? 0.0F : exp2_fast(peak - to);
    sum.x += factor * part.x;
    sum.y += factor * part.y;
  }

  attend_args<T, View, Guests> const& args_;
  Plan const& plan_;
  lane_rows<T, View, Guests, Plan> rows_;
  attend_shared<QueryRows>& shared_;
  unsigned char* dynamic_;
  float* parts_;         // [warp, row, channel]
  float* chunk_parts_;   // [chunk, row, channel], where there are several and no exchange
  float2* chunk_peaks_;  // [chunk of the lane, row], likewise
};

}  // namespace adore::gpu::detail
