// SPDX-License-Identifier: Apache-2.0
// One step of attention on the device, of lanes with random tokens in them, against what it must
// put out in double precision, store, and let the policy decide.
#pragma once

#include "agreement.cuh"
#include "attended_slots.hpp"
#include "attention_case.cuh"
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/key_norms.cuh>
#include <adore/gpu/token_ids.cuh>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace adore::testing {

template <class P>
std::vector<position_t> positions_of(gpu::device_ledger<P> const& books, index_t lane) {
  std::vector<position_t> all(static_cast<std::size_t>(books.view().slots));
  gpu::check(cudaMemcpy(all.data(),
                        books.view().positions + books.view().cell(lane),
                        all.size() * sizeof(position_t),
                        cudaMemcpyDeviceToHost));
  return all;
}

template <class T, int Channels, class P>
void check_step(P const& policy, attention_shape const& shape, std::uint64_t seed) {
  CAPTURE(Channels);
  CAPTURE(shape.rows);
  CAPTURE(shape.kv_heads);
  CAPTURE(shape.group);
  CAPTURE(shape.slots);
  CAPTURE(shape.max_new);
  std::mt19937_64 engine(seed);
  cudaStream_t stream = nullptr;
  gpu::check(cudaStreamCreate(&stream));
  attention_case<T, Channels> c(shape, seed);
  kv_shape const books_shape{shape.rows, 1, shape.kv_heads, shape.slots, Channels};
  gpu::device_ledger<P> books(policy, books_shape, scope::kv_head, shape.max_new, 100'000);
  index_t const budget = shape.slots - shape.max_new;
  std::vector<index_t> counts;
  std::vector<row_snapshot> before;
  for (index_t row = 0; row < shape.rows; ++row) {
    // row 0 is full, row 1 empty, the others lie between; from max_new > 1 on counts differ
    index_t const tokens =
        row == 0   ? budget
        : row == 1 ? 0
                   : static_cast<index_t>(engine() % static_cast<std::uint64_t>(budget));
    position_t const next = tokens + (tokens == 0 ? 0 : static_cast<position_t>(engine() % 100));
    before.push_back(random_books(books.view(), tokens, next, budget, engine, policy));
    counts.push_back(
        row == 0 ? shape.max_new
                 : 1 + static_cast<index_t>(engine() % static_cast<std::uint64_t>(shape.max_new)));
  }
  if (shape.rows > 3) counts.back() = 0;
  for (std::size_t row = 5; row < counts.size(); row += 7) counts[row] = 0;
  // the host's books of the same step, before its attention
  ledger<P> host(
      policy, {shape.rows, 1, shape.kv_heads, shape.slots, 1}, scope::kv_head, shape.max_new);
  std::vector<index_t> ids;  // [row, max_new]
  for (index_t i = 0; i < shape.rows * shape.max_new; ++i) {
    ids.push_back(static_cast<index_t>(engine() % 4));
  }
  for (index_t row = 0; row < shape.rows; ++row) {
    host.restore(row, before[static_cast<std::size_t>(row)]);
    host.for_lanes(row, [&](index_t lane) {
      host.place(lane, counts[static_cast<std::size_t>(row)]);
      auto const slots = host.slots_of(lane);
      if constexpr (reads_tokens<P>) {
        for (std::size_t j = 0; j < host.new_slots(lane).size(); ++j) {
          index_t const slot = host.new_slots(lane)[j];
          policy.hear(slots.state(slot),
                      *slots.lane_state,
                      slots.view(slot),
                      ids[static_cast<std::size_t>(row * shape.max_new) + j]);
          slots.rotary[slot] =
              gpu::shown_slot(policy, slots.positions[slot], slots.state(slot)).rotary_position;
        }
      }
    });
  }
  gpu::device_buffer<index_t> const ids_on_device(ids);
  auto const begin_step = [&](gpu::device_ledger<P>& to, gpu::device_hearing<P>& hearing) {
    for (index_t row = 0; row < shape.rows; ++row) {
      to.restore(stream, row, before[static_cast<std::size_t>(row)]);
    }
    to.set_counts(stream, counts);
    if constexpr (reads_tokens<P>) {
      hearing.hear_async(stream, to.view(), policy, ids_on_device.data());
    }
  };
  gpu::device_hearing<P> hearing(books.view());
  begin_step(books, hearing);
  std::vector<std::vector<position_t>> lanes;
  for (index_t lane = 0; lane < shape.rows * shape.kv_heads; ++lane) {
    lanes.push_back(positions_of(books, lane));
  }
  auto const stride = static_cast<std::size_t>(books.view().stride);
  c.weights = gpu::device_buffer<float>(
      static_cast<std::size_t>(shape.rows * shape.kv_heads * shape.max_new) * stride);
  c.weights.fill_async(0xFF, stream);
  c.out.fill_async(0xFF, stream);  // NaN where nothing is written
  c.lse.fill_async(0xFF, stream);
  auto args = c.args();
  args.weights = c.weights.data();
  gpu::attend_async<Channels>(stream, args, books.view(), policy);
  auto const out = c.out.to_host(stream);
  auto const lse = c.lse.to_host(stream);
  auto const weights = c.weights.to_host(stream);
  auto const keys = c.keys_on_device.to_host(stream);
  auto const values = c.values_on_device.to_host(stream);

  // Without weights, and beginning early, it does the same: bits are equal.
  attention_case<T, Channels> same(shape, seed);
  gpu::device_ledger<P> same_books(policy, books_shape, scope::kv_head, shape.max_new, 100'000);
  gpu::device_hearing<P> same_hearing(same_books.view());
  begin_step(same_books, same_hearing);
  same.out.fill_async(0xFF, stream);
  same.lse.fill_async(0xFF, stream);
  auto without_weights = same.args();
  without_weights.overlaps = true;
  gpu::device_buffer<float> norms_on_device(
      static_cast<std::size_t>(shape.rows * shape.kv_heads * shape.max_new));
  // lanes without new tokens have none
  norms_on_device.fill_async(0, stream);
  if constexpr (scores_keys<P>) {  // the same as attention measures itself
    gpu::measure_keys_async(stream, same_books.view(), args.k, norms_on_device.data());
    gpu::check(cudaStreamSynchronize(stream));
    without_weights.key_norms = norms_on_device.data();
  }
  gpu::attend_async<Channels>(stream, without_weights, same_books.view(), policy);
  auto const equal = [](auto const& one, auto const& other) {
    return one.size() == other.size() &&
           std::memcmp(one.data(), other.data(), one.size() * sizeof(one[0])) == 0;
  };
  CHECK(equal(same.out.to_host(stream), out));
  CHECK(equal(same.lse.to_host(stream), lse));
  CHECK(equal(same.keys_on_device.to_host(stream), keys));
  CHECK(equal(same.values_on_device.to_host(stream), values));
  for (index_t row = 0; row < shape.rows; ++row) {
    row_snapshot const one = books.snapshot(stream, row);
    row_snapshot const other = same_books.snapshot(stream, row);
    CHECK(one.positions == other.positions);
    CHECK(one.slot_states == other.slot_states);
  }

  double worst_out = 0.0, worst_lse = 0.0, worst_weight = 0.0, worst_sum = 0.0;
  auto const worse = [](double& worst, double x) {
    if (x > worst || std::isnan(x)) worst = x;  // and NaN stays
  };
  index_t const heads = shape.kv_heads * shape.group;
  for (index_t row = 0; row < shape.rows; ++row) {
    position_t const next = before[static_cast<std::size_t>(row)].next;
    for (index_t j = 0; j < counts[static_cast<std::size_t>(row)]; ++j) {
      auto const token = static_cast<std::size_t>(row * shape.max_new + j);
      for (index_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        auto const& positions = lanes[static_cast<std::size_t>(row * shape.kv_heads + kv_head)];
        std::vector<double> reduced(positions.size(), 0.0);
        bool const is_max = shape.reduction == gqa_reduction::max;
        double const share = shape.reduction == gqa_reduction::mean ? 1.0 / shape.group : 1.0;
        auto const attended = attended_slots(
            policy,
            host.slots_of(row * shape.kv_heads + kv_head),
            positions,
            next + j,
            {0, kv_head * shape.group, heads},
            shape.group,
            [&](index_t head) { return attend_exactly(c, positions, row, head, j, next).weights; });
        for (index_t member = 0; member < shape.group; ++member) {
          index_t const head = kv_head * shape.group + member;
          auto const exact = attend_exactly(
              c, positions, row, head, j, next, attended[static_cast<std::size_t>(member)]);
          auto const at = token * static_cast<std::size_t>(heads) + static_cast<std::size_t>(head);
          worse(worst_lse, std::abs(lse[at] - exact.lse));
          for (int i = 0; i < Channels; ++i) {
            double const want = exact.out[static_cast<std::size_t>(i)];
            double const got = widened(out[at * Channels + static_cast<std::size_t>(i)]);
            worse(worst_out, std::abs(got - want) / (grain<T>() * std::abs(want) + 3e-5));
          }
          for (std::size_t s = 0; s < positions.size(); ++s) {
            double const weight = share * exact.weights[s];
            reduced[s] = is_max ? std::max(reduced[s], weight) : reduced[s] + weight;
          }
        }
        float const* const given =
            weights.data() +
            (static_cast<std::size_t>((row * shape.kv_heads + kv_head) * shape.max_new + j)) *
                stride;
        double sum = 0.0;
        for (std::size_t s = 0; s < positions.size(); ++s) {
          worse(worst_weight, std::abs(given[s] - reduced[s]));
          sum += given[s];
        }
        if (!is_max) worse(worst_sum, std::abs(sum / (share * shape.group) - 1.0));
      }
    }
  }
  CHECK(worst_out <= 1.0);  // in units of one rounding of T
  CHECK(worst_lse <= 2e-5);
  CHECK(worst_weight <= 2e-5);
  CHECK(worst_sum <= 1e-5);

  // the new tokens' K and V lie in their slots, the others are as they were
  int misplaced = 0;
  for (index_t row = 0; row < shape.rows; ++row) {
    position_t const next = before[static_cast<std::size_t>(row)].next;
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      auto const& positions = lanes[static_cast<std::size_t>(row * shape.kv_heads + h)];
      for (index_t s = 0; s < shape.slots; ++s) {
        position_t const p = positions[static_cast<std::size_t>(s)];
        bool const fresh = p >= next && p < next + counts[static_cast<std::size_t>(row)];
        auto const source =
            static_cast<std::size_t>(
                ((row * shape.max_new + (fresh ? p - next : 0)) * shape.kv_heads + h)) *
            Channels;
        auto const cell = static_cast<std::size_t>(c.key(row, h, s) - c.keys.data());
        auto const* const want_key = fresh ? c.k.data() + source : c.key(row, h, s);
        auto const* const want_value = fresh ? c.v.data() + source : c.value(row, h, s);
        misplaced += std::memcmp(keys.data() + cell, want_key, Channels * sizeof(T)) != 0;
        misplaced += std::memcmp(values.data() + cell, want_value, Channels * sizeof(T)) != 0;
      }
    }
  }
  CHECK(misplaced == 0);

  // the decision is the host's, given the same weights
  gpu::advance_async(stream, books.view());
  agreement agrees;
  std::vector<float> norms;  // [row, kv_head, j]
  if (scores_keys<P>) norms = norms_on_device.to_host(stream);
  for (index_t row = 0; row < shape.rows; ++row) {
    index_t const count = counts[static_cast<std::size_t>(row)];
    if (count > 0) {
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        index_t const lane = row * shape.kv_heads + h;
        auto const slots = host.slots_of(lane);
        if constexpr (scores_keys<P>) {
          for (index_t j = 0; j < count; ++j) {
            index_t const slot = host.new_slots(lane)[static_cast<std::size_t>(j)];
            policy.score_key(slots.state(slot),
                             norms[static_cast<std::size_t>(lane * shape.max_new + j)]);
          }
        }
        std::vector<float> combined(static_cast<std::size_t>(shape.slots), 0.0F);
        for (index_t j = 0; j < count; ++j) {
          float const factor = query_weight_of(policy, count - 1 - j);
          auto const& there = lanes[static_cast<std::size_t>(lane)];
          for (index_t s = 0; s < shape.slots; ++s) {
            if (slots.positions[s] < 0) continue;
            auto const same = std::find(there.begin(), there.end(), slots.positions[s]);
            combined[static_cast<std::size_t>(s)] +=
                factor * weights[static_cast<std::size_t>(lane * shape.max_new + j) * stride +
                                 static_cast<std::size_t>(same - there.begin())];
          }
        }
        host.commit(lane, count, combined.data());
      }
    }
    host.advance(row, count);
    auto device = on_host(books, stream, row);
    compare_kept(device, host, row, agrees);
    // sums of weights may differ in their last bits
    bool const exact = masks_attention<P> || !observes_attention<P>;
    if constexpr (exact && !std::is_empty_v<slot_state_of<P>>) {
      compare_states(device, host, row, agrees);
    }
  }
  CHECK(agrees.differences == 0);
  CHECK(agrees.other_states == 0);
  CHECK(books.tokens_without_room(stream) == 0);
  // and the slots of the next step are reserved
  for (index_t row = 0; row < shape.rows; ++row) {
    position_t const next =
        before[static_cast<std::size_t>(row)].next + counts[static_cast<std::size_t>(row)];
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      auto const positions = positions_of(books, row * shape.kv_heads + h);
      for (index_t j = 0; j < shape.max_new; ++j) {
        CHECK(std::count(positions.begin(), positions.end(), next + j) == 1);
      }
    }
  }
  gpu::check(cudaStreamDestroy(stream));
}

}  // namespace adore::testing
