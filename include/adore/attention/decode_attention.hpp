// SPDX-License-Identifier: Apache-2.0
// Host attention of one query over the tokens of a lane, which also gives the probabilities away.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/types.hpp"

#include <cmath>
#include <span>

namespace adore {

namespace detail {

inline constexpr index_t dot_lanes = 16;

template <index_t Half>
inline void fold(float (&partial)[dot_lanes]) {
  for (index_t i = 0; i < Half; ++i) partial[i] += partial[i + Half];
}

/// Adds the upper half of the lanes to the lower, until one is left. (In a loop over the number of
/// lanes each sum goes through memory, which takes longer than the products of 64 channels.)
inline float sum_of_lanes(float (&partial)[dot_lanes]) {
  fold<8>(partial);
  fold<4>(partial);
  fold<2>(partial);
  return partial[0] + partial[1];
}

}  // namespace detail

/// Sum of products over the channels, in 16 partial sums so that it vectorises without fast-math
/// and gives the same bits whatever stands around it.
template <class T>
float dot(float const* __restrict a, T const* __restrict b, index_t channels, stride_t stride) {
  constexpr index_t lanes = detail::dot_lanes;
  float partial[lanes] = {};
  if (stride == 1 && channels % lanes == 0) {
    for (index_t c = 0; c < channels; c += lanes) {
      for (index_t i = 0; i < lanes; ++i) partial[i] += a[c + i] * static_cast<float>(b[c + i]);
    }
    return detail::sum_of_lanes(partial);
  }
  float rest[lanes] = {};  // an array of its own, so that the other stays in registers
  for (index_t c = 0; c < channels; ++c) {
    rest[c % lanes] += a[c] * static_cast<float>(b[c * stride]);
  }
  return detail::sum_of_lanes(rest);
}

/// to += factor * from
template <class T>
void add_scaled(float* __restrict to,
                float factor,
                T const* __restrict from,
                index_t channels,
                stride_t stride) {
  if (stride == 1) {
    for (index_t c = 0; c < channels; ++c) to[c] += factor * static_cast<float>(from[c]);
  } else {
    for (index_t c = 0; c < channels; ++c) to[c] += factor * static_cast<float>(from[c * stride]);
  }
}

/// Turns logits into probabilities in place; -infinity becomes 0.
///
/// @pre at least one logit is finite
inline void softmax(std::span<float> logits) {
  float largest = keep_never;
  for (float const logit : logits) largest = logit > largest ? logit : largest;
  float sum = 0.0F;
  for (float& logit : logits) {
    logit = std::exp(logit - largest);
    sum += logit;
  }
  for (float& logit : logits) logit /= sum;
}

/// Logits of one query head over some keys of a KV head.
///
/// @param slots   [count] slots to attend, in ascending position
/// @param logits  out, [count], scale * q.k
template <slot_addressed View>
void attention_logits(float const* query,
                      View keys,
                      index_t sequence,
                      index_t kv_head,
                      std::span<index_t const> slots,
                      float scale,
                      float* logits) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    logits[i] =
        scale * dot(query, keys(sequence, kv_head, slots[i]), keys.channels, keys.channel_stride);
  }
}

/// out = sum over slots of probability x value, in the order of `slots`; zeros are not read, so
/// that what lies in a masked slot cannot matter.
template <slot_addressed View>
void attention_output(std::span<float const> probabilities,
                      View values,
                      index_t sequence,
                      index_t kv_head,
                      std::span<index_t const> slots,
                      float* out) {
  for (index_t c = 0; c < values.channels; ++c) out[c] = 0.0F;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (probabilities[i] == 0.0F) continue;
    add_scaled(out,
               probabilities[i],
               values(sequence, kv_head, slots[i]),
               values.channels,
               values.channel_stride);
  }
}

}  // namespace adore
