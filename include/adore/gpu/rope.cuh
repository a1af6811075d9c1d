// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding on the device, in both pair layouts, exact for large positions.
#pragma once

#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/kv_rows.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/kv_view.hpp"
#include "adore/positions/rope.hpp"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace adore::gpu {

/// The rotation as kernels see it.
struct rope_view {
  double const* turns = nullptr;  // [pair] full turns per position
  index_t pairs = 0;
  rope_pairs layout = rope_pairs::halves;
};

/// The same rotation as `adore::rope`, for kernels.
///
/// Memory: one double per pair of channels, allocated at construction.
class device_rope {
 public:
  /// As in `adore::rope`.
  ///
  /// @throws std::invalid_argument as there; cuda_error
  device_rope(index_t channels, double base, rope_pairs layout, std::span<float const> factors = {})
      : layout_(layout) {
    rope const checked(channels, base, layout, factors);
    require_field(checked.channels() <= 2 * most_pairs,
                  "rope.channels",
                  channels,
                  "the device turns up to 1024 channels of a head");
    std::vector<double> turns;
    for (index_t i = 0; i < channels / 2; ++i) {
      double const factor = factors.empty() ? 1.0 : double{factors[static_cast<std::size_t>(i)]};
      turns.push_back(std::pow(base, -2.0 * i / channels) / factor / (2.0 * std::numbers::pi));
    }
    turns_ = device_buffer<double>(std::span<double const>(turns));
  }
  rope_view view() const noexcept {
    return {turns_.data(), static_cast<index_t>(turns_.size()), layout_};
  }

 private:
  static constexpr index_t most_pairs = 512;
  device_buffer<double> turns_;
  rope_pairs layout_;
};

/// Rotary positions of a step's tokens, one per token; a token of a negative one is left alone.
struct given_positions {
  position_t const* of_token;  // [token]
  __device__ position_t operator()(index_t token) const { return of_token[token]; }
};

/// Original positions: the j-th new token of a row gets its place in the text, next + j.
struct step_positions {
  row_books const* rows;  // [row]
  index_t row_count, max_new;

  template <eviction_policy P>
  explicit step_positions(ledger_view<P> const& ledger)
      : rows(ledger.rows), row_count(ledger.row_count), max_new(ledger.max_new) {}
  __device__ position_t operator()(index_t token) const {
    index_t const row = token / max_new;
    index_t const j = token - row * max_new;
    return row < row_count && j < rows[row].count ? rows[row].next + j : no_position;
  }
};

/// Keys that are turned anew from where they lie unturned, or turned by their base position.
///
/// Each list is [row, list, i], i < count, with one list for all KV heads or one for each.
struct turned_slots {
  index_t count = 0;
  index_t lists = 1;                 ///< per row: 1, or the number of KV heads
  index_t const* from = nullptr;     ///< slots in the source; nullptr: i
  index_t const* to = nullptr;       ///< slots in the destination; nullptr: i; negative: left alone
  position_t const* base = nullptr;  ///< added to the row's delta; nullptr: 0
  position_t const* delta = nullptr;  ///< [row] positions to turn by
};

namespace detail {

struct turn {
  float cosine, sine;
};

/// Whole turns are taken off in double precision; what is left fits a float.
///
/// The angle of position 4e6 is off by 1e-8 rad in double and by 2e-7 when rounded to float.
__device__ inline turn turn_to(double turns_per_position, std::int64_t position) {
  double const turns = static_cast<double>(position) * turns_per_position;
  auto const part = static_cast<float>(turns - rint(turns));  // [-1/2, 1/2]
  turn result;
  sincospif(2.0F * part, &result.sine, &result.cosine);
  return result;
}

template <class T>
__device__ inline void turn_pair(
    rope_view const& rope, index_t pair, turn const& by, T const* from, T* to) {
  bool const adjacent = rope.layout == rope_pairs::adjacent;
  index_t const first = adjacent ? 2 * pair : pair;
  index_t const second = first + (adjacent ? 1 : rope.pairs);
  auto const x = static_cast<float>(from[first]);
  auto const y = static_cast<float>(from[second]);
  to[first] = static_cast<T>(x * by.cosine - y * by.sine);
  to[second] = static_cast<T>(x * by.sine + y * by.cosine);
}

// A thread turns one pair, with one sine, in several heads: threads (pair, head), about 256 of
// them. Sixteen heads per block, so that 64 tokens of 40 heads are 192 blocks.
inline constexpr index_t turned_heads = 16;
inline dim3 turn_block(index_t pairs) {
  return {static_cast<unsigned>(pairs), static_cast<unsigned>(pairs < 256 ? 256 / pairs : 1)};
}

/// Grid: (token, group of heads); the heads of q come first.
template <class T, class Positions>
__global__ void __launch_bounds__(512) rotate_kernel(rope_view const rope,
                                                     Positions const positions,
                                                     token_view<T> const q,
                                                     token_view<T> const k) {
  let_next_begin();
  auto const token = static_cast<index_t>(blockIdx.x);
  position_t const position = positions(token);
  if (position < 0) return;
  auto const pair = static_cast<index_t>(threadIdx.x);
  turn const by = turn_to(rope.turns[pair], position);
  index_t const first = static_cast<index_t>(blockIdx.y) * turned_heads;
  index_t const end = min(first + turned_heads, q.heads + k.heads);
  for (index_t head = first + static_cast<index_t>(threadIdx.y); head < end;
       head += static_cast<index_t>(blockDim.y)) {
    T* const at = head < q.heads ? q(token, head) : k(token, head - q.heads);
    turn_pair(rope, pair, by, at, at);
  }
}

/// Grid: (row and i, group of KV heads).
template <kv_rows Source, kv_rows Destination>
__global__ void __launch_bounds__(512) rotate_by_kernel(rope_view const rope,
                                                        turned_slots const slots,
                                                        Source const source,
                                                        Destination const destination) {
  index_t const row = static_cast<index_t>(blockIdx.x) / slots.count;
  index_t const i = static_cast<index_t>(blockIdx.x) - row * slots.count;
  auto const pair = static_cast<index_t>(threadIdx.x);
  double const turns = rope.turns[pair];
  index_t const first = static_cast<index_t>(blockIdx.y) * turned_heads;
  index_t const end = min(first + turned_heads, destination.kv_heads);
  for (index_t head = first + static_cast<index_t>(threadIdx.y); head < end;
       head += static_cast<index_t>(blockDim.y)) {
    index_t const list = row * slots.lists + (slots.lists > 1 ? head : 0);
    std::int64_t const entry = static_cast<std::int64_t>(list) * slots.count + i;
    index_t const to_slot = slots.to == nullptr ? i : slots.to[entry];
    if (to_slot < 0) continue;
    std::int64_t const base = slots.base == nullptr ? 0 : slots.base[entry];
    auto const* const from = source(row, head, slots.from == nullptr ? i : slots.from[entry]);
    auto* const to = destination(row, head, to_slot);
    turn_pair(rope, pair, turn_to(turns, base + slots.delta[row]), from, to);
    if (from == to) continue;
    for (index_t c = 2 * rope.pairs + pair; c < destination.channels; c += rope.pairs) {
      to[c] = from[c];
    }
  }
}

}  // namespace detail

/// Turns q and k of a step's tokens in place, by position; channels beyond the rope's stay.
///
/// @param positions  `given_positions` or `step_positions`
/// @param q, k       [token, head, channel]; k may be empty
/// @throws  std::logic_error for shapes that do not fit together, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
template <class T, class Positions>
void rotate_async(cudaStream_t stream,
                  rope_view const& rope,
                  Positions const& positions,
                  token_view<T> q,
                  std::type_identity_t<token_view<T>> k = {}) {
  static_assert(std::is_trivially_copyable_v<Positions>);
  if (k.heads > 0) {
    require_same("rotate", "k", "tokens", k.tokens, "q has", q.tokens);
    require_same("rotate", "k", "channels", k.channels, "q has", q.channels);
  }
  require_field(2 * rope.pairs <= q.channels, "rope.channels", 2 * rope.pairs, "a head has fewer");
  index_t const heads = q.heads + k.heads;
  if (q.tokens == 0 || heads == 0) return;
  dim3 const grid(static_cast<unsigned>(q.tokens),
                  static_cast<unsigned>((heads + detail::turned_heads - 1) / detail::turned_heads));
  detail::rotate_kernel<<<grid, detail::turn_block(rope.pairs), 0, stream>>>(rope, positions, q, k);
  check(cudaGetLastError());
}

/// Turns the keys in chosen slots: destination[to] = source[from] turned by base + delta.
///
/// With sinks and a window under cache-index positions only the sinks move: source holds them
/// unturned, base is their rank, and delta how far the newest token's position is ahead of its rank
/// (policies.md 0.6). Turned each time from the same source, they gather no rounding errors.
///
/// @pre     source and destination are the same slot of the same memory, or apart
/// @throws  std::logic_error for shapes that do not fit together, std::invalid_argument for memory
///          whose rows are not in one piece, cuda_error if the launch fails
/// Stream:  enqueued on `stream`; returns before it is done.  Memory: no allocation.
template <kv_rows Source, kv_rows Destination>
void rotate_by_async(cudaStream_t stream,
                     rope_view const& rope,
                     turned_slots const& slots,
                     Source const& source,
                     Destination const& destination) {
  static_assert(std::is_same_v<element_of<Source>, typename Destination::value_type>);
  index_t const heads = destination.kv_heads;
  require_same("rotate_by", "source", "KV heads", source.kv_heads, "the destination has", heads);
  require_same("rotate_by",
               "source",
               "channels",
               source.channels,
               "the destination has",
               destination.channels);
  require_same("rotate_by",
               "source",
               "rows",
               source.sequences,
               "the destination has",
               destination.sequences);
  if (slots.lists != 1) {
    require_same("rotate_by", "rows", "lists", slots.lists, "KV heads are", heads);
  }
  require_field(
      2 * rope.pairs <= source.channels, "rope.channels", 2 * rope.pairs, "a head has fewer");
  check_rows(source, "source");
  check_rows(destination, "destination");
  if (slots.delta == nullptr) throw std::logic_error("adore: rotate_by: delta is null");
  if (slots.count == 0 || source.sequences == 0 || heads == 0) return;
  dim3 const grid(static_cast<unsigned>(source.sequences * slots.count),
                  static_cast<unsigned>((heads + detail::turned_heads - 1) / detail::turned_heads));
  detail::rotate_by_kernel<<<grid, detail::turn_block(rope.pairs), 0, stream>>>(
      rope, slots, source, destination);
  check(cudaGetLastError());
}

}  // namespace adore::gpu
