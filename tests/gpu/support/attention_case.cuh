// SPDX-License-Identifier: Apache-2.0
// A layer of a cache on the device with random numbers in it, one step of it, and what the step
// must give, computed in double precision.
#pragma once

#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/unobserved_step.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace adore::testing {

template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(x);
  } else {
    return __float2bfloat16(x);
  }
}
template <class T>
float widened(T x) {
  return static_cast<float>(x);
}
/// Largest relative step of the type, for tolerances of what is written as T.
template <class T>
constexpr double grain() {
  return std::is_same_v<T, float> ? 1.2e-7 : std::is_same_v<T, __half> ? 4.9e-4 : 3.9e-3;
}

template <class T>
std::vector<T> random_elements(std::size_t count, std::uint64_t seed, float scale = 1.0F) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<T> data(count);
  for (T& x : data) x = rounded<T>(normal(engine));
  return data;
}

struct attention_shape {
  index_t rows = 3, kv_heads = 2, group = 1, slots = 40, max_new = 1;
  float apart = 0.0F;  ///< added to all elements of keys, taken from those of queries
  index_t cut_for_lanes = 0;
  float scale = 0.0F;
  gqa_reduction reduction = gqa_reduction::sum;
};

/// Positions, K and V of all rows of one layer, and the new tokens' q, k and v.
template <class T, int Channels>
struct attention_case {
  attention_shape shape;
  kv_shape cache;
  std::vector<T> keys, values;  // [row, kv_head, slot, channel]
  std::vector<T> q, k, v;       // [token, head, channel]
  gpu::device_buffer<T> keys_on_device, values_on_device, q_on_device, k_on_device, v_on_device,
      out;
  gpu::device_buffer<float> lse, weights;

  explicit attention_case(attention_shape const& s, std::uint64_t seed)
      : shape(s), cache{s.rows, 1, s.kv_heads, s.slots, Channels} {
    auto const cells = static_cast<std::size_t>(s.rows * s.kv_heads * s.slots) * Channels;
    auto const tokens = static_cast<std::size_t>(s.rows * s.max_new);
    auto const news = tokens * static_cast<std::size_t>(s.kv_heads) * Channels;
    keys = random_elements<T>(cells, seed + 1);
    values = random_elements<T>(cells, seed + 2);
    q = random_elements<T>(news * static_cast<std::size_t>(s.group), seed + 3, 2.0F);
    k = random_elements<T>(news, seed + 4);
    v = random_elements<T>(news, seed + 5);
    for (T& x : keys) x = rounded<T>(widened(x) + s.apart);
    for (T& x : k) x = rounded<T>(widened(x) + s.apart);
    for (T& x : q) x = rounded<T>(widened(x) - s.apart);
    keys_on_device = gpu::device_buffer<T>(keys);
    values_on_device = gpu::device_buffer<T>(values);
    q_on_device = gpu::device_buffer<T>(q);
    k_on_device = gpu::device_buffer<T>(k);
    v_on_device = gpu::device_buffer<T>(v);
    out = gpu::device_buffer<T>(q.size());
    lse = gpu::device_buffer<float>(tokens * static_cast<std::size_t>(s.kv_heads * s.group));
  }

  kv_view<T> keys_view() {
    return {keys_on_device.data(), shape.rows, shape.kv_heads, shape.slots, Channels};
  }
  kv_view<T> values_view() {
    return {values_on_device.data(), shape.rows, shape.kv_heads, shape.slots, Channels};
  }
  gpu::attend_args<T, kv_view<T>> args() {
    index_t const tokens = shape.rows * shape.max_new;
    index_t const heads = shape.kv_heads * shape.group;
    return {.q = {q_on_device.data(), tokens, heads, Channels},
            .k = {k_on_device.data(), tokens, shape.kv_heads, Channels},
            .v = {v_on_device.data(), tokens, shape.kv_heads, Channels},
            .keys = keys_view(),
            .values = values_view(),
            .out = {out.data(), tokens, heads, Channels},
            .lse = lse.data(),
            .scale = shape.scale,
            .reduction = shape.reduction,
            .cut_for_lanes = shape.cut_for_lanes};
  }

  T const* key(index_t row, index_t head, index_t slot) const {
    return keys.data() +
           (static_cast<std::size_t>((row * shape.kv_heads + head) * shape.slots + slot)) *
               Channels;
  }
  T const* value(index_t row, index_t head, index_t slot) const {
    return values.data() +
           (static_cast<std::size_t>((row * shape.kv_heads + head) * shape.slots + slot)) *
               Channels;
  }
};

/// What one query head must give.
struct exact_attention {
  std::vector<double> weights;  // [slot]
  std::vector<double> out;      // [channel]
  double lse = 0.0;
};

/// @param positions  [slot] of the lane as the step finds them (see `ledger_view`)
/// @param attended   [slot] 0: hidden from the query; empty: none is
template <class T, int Channels>
exact_attention attend_exactly(attention_case<T, Channels> const& c,
                               std::vector<position_t> const& positions,
                               index_t row,
                               index_t head,
                               index_t j,
                               position_t next,
                               std::vector<char> const& attended = {}) {
  index_t const kv_head = head / c.shape.group;
  auto const token = static_cast<std::size_t>(row * c.shape.max_new + j);
  auto const heads = static_cast<std::size_t>(c.shape.kv_heads * c.shape.group);
  T const* const q = c.q.data() + (token * heads + static_cast<std::size_t>(head)) * Channels;
  auto const row_of = [&](index_t slot, bool key) -> T const* {
    position_t const p = positions[static_cast<std::size_t>(slot)];
    if (p < next) return key ? c.key(row, kv_head, slot) : c.value(row, kv_head, slot);
    auto const source = static_cast<std::size_t>(
                            ((row * c.shape.max_new + p - next) * c.shape.kv_heads + kv_head)) *
                        Channels;
    return (key ? c.k.data() : c.v.data()) + source;
  };
  exact_attention exact;
  exact.weights.assign(positions.size(), 0.0);
  std::vector<double> logits(positions.size(), -std::numeric_limits<double>::infinity());
  double highest = -std::numeric_limits<double>::infinity();
  for (std::size_t s = 0; s < positions.size(); ++s) {
    if (positions[s] < 0 || positions[s] > next + j) continue;
    if (!attended.empty() && attended[s] == 0) continue;
    double dot = 0.0;
    for (int i = 0; i < Channels; ++i) {
      dot += static_cast<double>(widened(q[i])) * widened(row_of(static_cast<index_t>(s), true)[i]);
    }
    logits[s] = c.shape.scale != 0.0F ? dot * c.shape.scale
                                      : dot / std::sqrt(static_cast<double>(Channels));
    highest = std::max(highest, logits[s]);
  }
  double total = 0.0;
  for (double const x : logits) total += std::exp(x - highest);
  exact.lse = highest + std::log(total);
  exact.out.assign(Channels, 0.0);
  for (std::size_t s = 0; s < positions.size(); ++s) {
    exact.weights[s] = std::exp(logits[s] - exact.lse);
    if (exact.weights[s] == 0.0) continue;
    for (int i = 0; i < Channels; ++i) {
      exact.out[static_cast<std::size_t>(i)] +=
          exact.weights[s] * widened(row_of(static_cast<index_t>(s), false)[i]);
    }
  }
  return exact;
}

/// The policy that gave tokens their scores.
template <class P>
P const& observing(P const& policy) {
  return policy;
}
template <class P>
P const& observing(gpu::unobserved<P> const& policy) {
  return policy;
}

/// A row's books with `tokens` kept tokens at random slots, so that there are holes. A policy that
/// reads tokens has read random ids from 0 to 3.
template <eviction_policy P>
row_snapshot random_books(gpu::ledger_view<P> const& view,
                          index_t tokens,
                          position_t next,
                          index_t budget,
                          std::mt19937_64& engine,
                          P const& policy = {}) {
  row_snapshot saved{.reach = view.reach, .next = next, .seed = engine()};
  auto const slots = static_cast<std::size_t>(view.slots);
  for (index_t lane = 0; lane < view.lanes_per_row(); ++lane) {
    saved.budgets.push_back(budget);
    std::vector<position_t> all(static_cast<std::size_t>(next));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<position_t>(i);
    std::shuffle(all.begin(), all.end(), engine);
    all.resize(static_cast<std::size_t>(tokens));
    all.resize(slots, no_position);
    std::shuffle(all.begin(), all.end(), engine);
    saved.positions.insert(saved.positions.end(), all.begin(), all.end());
  }
  saved.rotary = saved.positions;
  using state = slot_state_of<P>;
  if constexpr (!std::is_empty_v<state>) {
    std::vector<state> states(static_cast<std::size_t>(view.lanes_per_row()) * slots);
    auto const& scored = observing(policy);
    if constexpr (observes_attention<std::remove_cvref_t<decltype(scored)>>) {
      for (state& s : states) {
        scored.observe(s, {0, 0}, {}, static_cast<float>(engine() % 1024) / 1024.0F, 1);
        if constexpr (marks_tokens<P>) policy.mark(s, engine() % 2 == 0);
      }
    }
    if constexpr (scores_keys<P>) {
      for (state& s : states) policy.score_key(s, static_cast<float>(engine() % 1024) / 8.0F);
    }
    if constexpr (reads_tokens<P>) {
      std::vector<state> heard(static_cast<std::size_t>(next));
      lane_state_of<P> lane{};
      for (position_t p = 0; p < next; ++p) {
        policy.hear(
            heard[static_cast<std::size_t>(p)], lane, {p, p}, static_cast<index_t>(engine() % 4));
      }
      for (std::size_t i = 0; i < saved.positions.size(); ++i) {
        if (saved.positions[i] < 0) continue;
        states[i] = heard[static_cast<std::size_t>(saved.positions[i])];
        saved.rotary[i] = gpu::shown_slot(policy, saved.positions[i], states[i]).rotary_position;
      }
      auto const* const of_lane = reinterpret_cast<std::byte const*>(&lane);
      for (index_t i = 0; i < view.lanes_per_row(); ++i) {
        saved.lane_states.insert(saved.lane_states.end(), of_lane, of_lane + sizeof(lane));
      }
    }
    auto const* const bytes = reinterpret_cast<std::byte const*>(states.data());
    saved.slot_states.assign(bytes, bytes + states.size() * sizeof(state));
  }
  if constexpr (!std::is_empty_v<lane_state_of<P>> && !reads_tokens<P>) {
    saved.lane_states.resize(static_cast<std::size_t>(view.lanes_per_row()) *
                             sizeof(lane_state_of<P>));
  }
  return saved;
}

}  // namespace adore::testing
