// SPDX-License-Identifier: Apache-2.0
// Weights from queries, keys and log-sum-exp, against a reference in double precision.
#include "adore/gpu/device_ledger.cuh"
#include "adore/gpu/paged_view.cuh"
#include "adore/gpu/weights.cuh"
#include "adore/policies/h2o.hpp"
#include "support/books_on_device.cuh"
#include "support/device_tensor.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

namespace adore::testing {
namespace {

struct weights_shape {
  index_t rows = 2, kv_heads = 2, group = 1, slots = 100, max_new = 1, channels = 64;
};

/// Queries of a step and a layer's keys, their log-sum-exp and weights in double.
template <class T>
struct weights_case {
  weights_shape shape;
  double scale;
  std::vector<T> q, keys;      // [token, head, channel], [row, kv_head, slot, channel]
  std::vector<float> lse;      // [token, head]
  std::vector<float> factors;  // [later], empty: 1
  std::vector<std::vector<position_t>> positions;  // [row x kv_head][slot]
  std::vector<gpu::query_run> runs;                // [row]

  weights_case(weights_shape const& s, std::mt19937& random)
      : shape(s), scale(1.0 / std::sqrt(static_cast<double>(s.channels))) {
    auto const channels = static_cast<std::size_t>(s.channels);
    q = random_exact<T>(
        static_cast<std::size_t>(s.rows * s.max_new * s.kv_heads * s.group) * channels, random);
    keys =
        random_exact<T>(static_cast<std::size_t>(s.rows * s.kv_heads * s.slots) * channels, random);
    lse.assign(static_cast<std::size_t>(s.rows * s.max_new * s.kv_heads * s.group),
               std::numeric_limits<float>::quiet_NaN());
  }
  index_t lane(index_t row, index_t head) const { return row * shape.kv_heads + head; }
  bool live(index_t row, index_t head, index_t slot) const {
    auto const& run = runs[static_cast<std::size_t>(row)];
    position_t const p =
        positions[static_cast<std::size_t>(lane(row, head))][static_cast<std::size_t>(slot)];
    return p >= 0 && p < run.next + run.count;
  }
  double logit(index_t row, index_t head, index_t member, index_t j, index_t slot) const {
    auto const channels = static_cast<std::size_t>(shape.channels);
    auto const token = row * shape.max_new + j;
    auto const query =
        static_cast<std::size_t>((token * shape.kv_heads + head) * shape.group + member);
    auto const key = static_cast<std::size_t>(lane(row, head) * shape.slots + slot);
    double sum = 0.0;
    for (std::size_t c = 0; c < channels; ++c) {
      sum += number(q[query * channels + c]) * number(keys[key * channels + c]);
    }
    return sum * scale;
  }
  bool sees(index_t row, index_t head, index_t j, index_t slot) const {
    return live(row, head, slot) &&
           positions[static_cast<std::size_t>(lane(row, head))][static_cast<std::size_t>(slot)] <=
               runs[static_cast<std::size_t>(row)].next + j;
  }
  /// Once positions are known: free slots get keys that are no numbers, queries their sums.
  void finish() {
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        for (index_t s = 0; s < shape.slots; ++s) {
          if (live(row, head, s)) continue;
          auto const at =
              static_cast<std::ptrdiff_t>(lane(row, head) * shape.slots + s) * shape.channels;
          std::fill_n(keys.begin() + at,
                      shape.channels,
                      static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
        }
        for (index_t j = 0; j < runs[static_cast<std::size_t>(row)].count; ++j) {
          for (index_t m = 0; m < shape.group; ++m) {
            double sum = 0.0;
            for (index_t s = 0; s < shape.slots; ++s) {
              if (sees(row, head, j, s)) sum += std::exp(logit(row, head, m, j, s));
            }
            lse[static_cast<std::size_t>(
                ((row * shape.max_new + j) * shape.kv_heads + head) * shape.group + m)] =
                static_cast<float>(std::log(sum));
          }
        }
      }
    }
  }
  double expected_of_query(
      gqa_reduction reduction, index_t row, index_t head, index_t j, index_t slot) const {
    if (!sees(row, head, j, slot)) return 0.0;
    double sum = 0.0, largest = 0.0;
    for (index_t m = 0; m < shape.group; ++m) {
      double const p =
          std::exp(logit(row, head, m, j, slot) -
                   lse[static_cast<std::size_t>(
                       ((row * shape.max_new + j) * shape.kv_heads + head) * shape.group + m)]);
      sum += p;
      largest = std::max(largest, p);
    }
    return reduction == gqa_reduction::sum    ? sum
           : reduction == gqa_reduction::mean ? sum / shape.group
                                              : largest;
  }
  double expected(gqa_reduction reduction, index_t row, index_t head, index_t slot) const {
    index_t const count = runs[static_cast<std::size_t>(row)].count;
    double total = 0.0;
    for (index_t j = 0; j < count; ++j) {
      total += expected_of_query(reduction, row, head, j, slot) *
               (factors.empty() ? 1.0 : factors[static_cast<std::size_t>(count - 1 - j)]);
    }
    return total;
  }

  template <class Slots, class ViewOf>
  void check(gqa_reduction reduction,
             Slots const& slots,
             std::vector<T> const& memory,
             ViewOf&& view_of,
             cudaStream_t stream) {
    CAPTURE(shape.group);
    CAPTURE(shape.channels);
    CAPTURE(shape.max_new);
    CAPTURE(static_cast<int>(reduction));
    device_tensor<T> queries(q), k(memory);
    device_tensor<float> sums(lse), of_query(factors);
    index_t const stride = shape.slots + 3;
    auto const outs = static_cast<std::size_t>(shape.rows * shape.kv_heads * stride);
    device_tensor<float> out(std::vector<float>(outs, -7.0F));
    gpu::weights_args<T> args;
    args.q = token_view<T const>(
        queries.data(), shape.rows * shape.max_new, shape.kv_heads * shape.group, shape.channels);
    args.lse = sums.data();
    args.scale = static_cast<float>(scale);
    args.query_weights = factors.empty() ? nullptr : of_query.data();
    args.reduction = reduction;
    args.out = out.data();
    args.out_stride = stride;
    gpu::weights_async(stream, args, slots, view_of(k.data()));
    out.fetch(stream);
    int wrong = 0;
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        for (index_t s = 0; s < stride; ++s) {
          float const got = out.host[static_cast<std::size_t>(lane(row, head) * stride + s)];
          if (s >= shape.slots || runs[static_cast<std::size_t>(row)].count == 0) {
            wrong += got == -7.0F ? 0 : 1;
            continue;
          }
          double const wanted = expected(reduction, row, head, s);
          // the log-sum-exp is a float, and so is a logit
          wrong += std::abs(got - wanted) <= 1e-5 * wanted ? 0 : 1;
        }
      }
    }
    CHECK(wrong == 0);

    device_tensor<float> each(
        std::vector<float>(outs * static_cast<std::size_t>(shape.max_new), -7.0F));
    args.query_weights = nullptr;
    args.each_query = true;
    args.out = each.data();
    gpu::weights_async(stream, args, slots, view_of(k.data()));
    each.fetch(stream);
    int wrong_of_query = 0;
    for (std::size_t i = 0; i < each.host.size(); ++i) {
      auto const at = static_cast<index_t>(i);
      index_t const slot = at % stride, j = at / stride % shape.max_new;
      index_t const head = at / stride / shape.max_new % shape.kv_heads;
      index_t const row = at / stride / shape.max_new / shape.kv_heads;
      bool const written = slot < shape.slots && j < runs[static_cast<std::size_t>(row)].count;
      double const wanted = written ? expected_of_query(reduction, row, head, j, slot) : -7.0;
      wrong_of_query += std::abs(each.host[i] - wanted) <= 1e-5 * std::abs(wanted) ? 0 : 1;
    }
    CHECK(wrong_of_query == 0);
  }
};

template <class T>
void check_ledger(weights_shape const& shape,
                  gqa_reduction reduction,
                  std::vector<float> const& factors = {}) {
  test_stream const stream;
  std::mt19937 random(21);
  books_on_device<h2o> books(
      {shape.rows, 1, shape.kv_heads, shape.slots, shape.max_new, scope::kv_head});
  weights_case<T> test(shape, random);
  test.factors = factors;
  for (index_t row = 0; row < shape.rows; ++row) {
    index_t const count = row == 2 ? 0 : shape.max_new - (row == 1 ? shape.max_new / 2 : 0);
    books.row(row) = {.next = row == 3 ? 0 : 200 + row, .count = count, .seed = 0};
    test.runs.push_back({books.row(row).next, count});
  }
  for (index_t lane = 0; lane < books.lane_count(); ++lane) {
    index_t const room = shape.slots - shape.max_new;
    index_t const kept = books.row_of(lane) == 3 ? 0 : lane % 2 == 0 ? room - 7 : room / 3;
    books.fill(lane, kept, 5, random);
    auto const begin = books.positions.begin() + books.view().cell(lane);
    test.positions.emplace_back(begin, begin + shape.slots);
  }
  books.to_device(stream);
  test.finish();
  test.check(
      reduction,
      gpu::ledger_slots<h2o>{books.view(), 0},
      test.keys,
      [&](T* data) {
        return kv_view<T const>(data, shape.rows, shape.kv_heads, shape.slots, shape.channels);
      },
      stream);
}

}  // namespace

TEST_CASE("weights are probabilities summed over the heads of a group") {
  check_ledger<__nv_bfloat16>({4, 2, 1, 200, 1, 128}, gqa_reduction::sum);
  check_ledger<__nv_bfloat16>({2, 2, 4, 70, 1, 128}, gqa_reduction::sum);
  check_ledger<__half>({2, 1, 7, 33, 1, 64}, gqa_reduction::sum);
  check_ledger<__half>({2, 1, 16, 64, 1, 256}, gqa_reduction::sum);
  check_ledger<float>({2, 2, 1, 65, 1, 128}, gqa_reduction::sum);
  check_ledger<float>({2, 1, 12, 40, 1, 96}, gqa_reduction::sum);
  check_ledger<float>({1, 1, 3, 40, 1, 256}, gqa_reduction::sum);
}

TEST_CASE("heads of a group are reduced by mean or maximum, whatever their number") {
  for (index_t const group : {1, 2, 3, 4, 5, 8, 9, 16}) {
    for (gqa_reduction const reduction : {gqa_reduction::mean, gqa_reduction::max}) {
      check_ledger<__nv_bfloat16>({2, 1, group, 40, 1, 64}, reduction);
      check_ledger<__nv_bfloat16>({2, 1, group, 40, 5, 64}, reduction);
    }
  }
}

TEST_CASE("queries of one call see what was there before them and count by their weight") {
  check_ledger<__nv_bfloat16>({3, 2, 2, 60, 4, 128}, gqa_reduction::sum);
  check_ledger<__nv_bfloat16>({2, 1, 4, 60, 16, 96}, gqa_reduction::sum);
  std::vector<float> const fading{1.0F, 0.5F, 0.25F, 0.125F};
  check_ledger<__half>({3, 2, 3, 60, 4, 64}, gqa_reduction::max, fading);
  check_ledger<float>({2, 1, 1, 60, 4, 256}, gqa_reduction::sum, fading);
  std::vector<float> const last_only{1.0F, 0.0F, 0.0F, 0.0F, 0.0F, 0.0F};
  check_ledger<__nv_bfloat16>({2, 2, 16, 60, 6, 64}, gqa_reduction::max, last_only);
  check_ledger<__nv_bfloat16>({2, 2, 4, 60, 6, 64}, gqa_reduction::mean, last_only);
}

TEST_CASE("without a ledger, slots are filled in order up to a length; in pages, too") {
  test_stream const stream;
  std::mt19937 random(22);
  constexpr index_t page = 8;
  weights_shape const shape{3, 2, 4, 40, 3, 128};
  weights_case<__half> test(shape, random);
  std::vector<index_t> const lengths{40, 3, 17}, counts{3, 2, 1};
  for (index_t row = 0; row < shape.rows; ++row) {
    auto const i = static_cast<std::size_t>(row);
    test.runs.push_back({lengths[i] - counts[i], counts[i]});
    for (index_t head = 0; head < shape.kv_heads; ++head) {
      std::vector<position_t> own;
      for (index_t s = 0; s < shape.slots; ++s) own.push_back(s < lengths[i] ? s : no_position);
      test.positions.push_back(own);
    }
  }
  test.finish();
  device_tensor<index_t> length(lengths), count(counts);
  gpu::filled_slots const slots{length.data(), count.data(), shape.rows, shape.max_new};
  test.check(
      gqa_reduction::sum,
      slots,
      test.keys,
      [&](__half* data) {
        return kv_view<__half>(data, shape.rows, shape.kv_heads, shape.slots, shape.channels);
      },
      stream);

  // the same keys in pages of 8 slots, of which each sequence has only those that it needs
  std::vector<index_t> table, ranges{0}, ends;
  index_t next_page = 9;
  for (index_t const n : lengths) {
    for (index_t p = 0; p < (n + page - 1) / page; ++p) table.push_back(next_page--);
    ranges.push_back(static_cast<index_t>(table.size()));
    ends.push_back((n - 1) % page + 1);
  }
  std::vector<__half> memory(static_cast<std::size_t>(10 * page * shape.kv_heads * shape.channels),
                             __half(std::numeric_limits<float>::quiet_NaN()));
  gpu::paged_view<__half> const pages_on_host(memory.data(),
                                              gpu::page_layout::hnd,
                                              shape.rows,
                                              shape.kv_heads,
                                              shape.slots,
                                              shape.channels,
                                              page,
                                              table.data(),
                                              ranges.data(),
                                              ends.data());
  for (index_t row = 0; row < shape.rows; ++row) {
    for (index_t head = 0; head < shape.kv_heads; ++head) {
      for (index_t s = 0; s < lengths[static_cast<std::size_t>(row)]; ++s) {
        auto const from =
            static_cast<std::ptrdiff_t>(test.lane(row, head) * shape.slots + s) * shape.channels;
        std::copy_n(test.keys.begin() + from, shape.channels, pages_on_host(row, head, s));
      }
    }
  }
  device_tensor<index_t> indices(table), indptr(ranges), last(ends);
  test.check(
      gqa_reduction::mean,
      slots,
      memory,
      [&](__half* data) {
        return gpu::paged_view<__half const>(data,
                                             gpu::page_layout::hnd,
                                             shape.rows,
                                             shape.kv_heads,
                                             shape.slots,
                                             shape.channels,
                                             page,
                                             indices.data(),
                                             indptr.data(),
                                             last.data());
      },
      stream);
}

TEST_CASE("weights are refused for shapes that the kernel has not got") {
  test_stream const stream;
  gpu::device_buffer<float> memory(8192);
  gpu::device_buffer<index_t> const lengths(std::vector<index_t>{3});
  gpu::filled_slots const slots{lengths.data(), nullptr, 1, 1};
  auto const form = [&](index_t heads, index_t channels, index_t tokens, std::int64_t stride) {
    gpu::weights_args<float> args;
    args.q = token_view<float const>(memory.data(), tokens, heads, channels);
    args.lse = args.out = memory.data();
    args.out_stride = stride;
    gpu::weights_async(stream, args, slots, kv_view<float>(memory.data(), 1, 2, 4, channels));
  };
  CHECK_THROWS_AS(form(2, 32, 1, 4), std::invalid_argument);
  CHECK_THROWS_AS(form(3, 64, 1, 4), std::invalid_argument);
  CHECK_THROWS_AS(form(34, 64, 1, 4), std::invalid_argument);
  CHECK_THROWS_WITH_AS(form(2, 64, 1, 3),
                       doctest::Contains("out_stride = 3: must be at least the 4 slots"),
                       std::invalid_argument);
  CHECK_THROWS_AS(form(2, 64, 0, 4), std::logic_error);
  gpu::weights_args<float> args;
  args.q = token_view<float const>(memory.data(), 1, 2, 64);
  kv_view<float> const keys(memory.data(), 1, 2, 4, 64);
  CHECK_THROWS_WITH_AS(gpu::weights_async(stream, args, slots, keys),
                       "adore: weights.lse: is null",
                       std::invalid_argument);
  args.lse = args.out = memory.data();
  gpu::filled_slots const endless{nullptr, nullptr, 1, 1};
  CHECK_THROWS_WITH_AS(gpu::weights_async(stream, args, endless, keys),
                       "adore: weights.slots.lengths: is null",
                       std::invalid_argument);
  args.query_weights = memory.data();
  args.each_query = true;
  CHECK_THROWS_WITH_AS(gpu::weights_async(stream, args, slots, keys),
                       doctest::Contains("query_weights: must be null"),
                       std::invalid_argument);
  args.each_query = false;
  args.query_weights = nullptr;
  gpu::device_ledger<h2o> const books({.heavy = 1, .recent = 1}, {1, 1, 2, 8, 64}, scope::kv_head);
  CHECK_THROWS_WITH_AS(
      gpu::weights_async(stream, args, gpu::ledger_slots<h2o>{books.view(), 0}, keys),
      doctest::Contains("of 4 slots, the ledger has 1 of 8"),
      std::logic_error);
  kv_view<float> const fitting(memory.data(), 1, 2, 8, 64);
  CHECK_THROWS_WITH_AS(
      gpu::weights_async(stream, args, gpu::ledger_slots<h2o>{books.view(), 1}, fitting),
      doctest::Contains("slots.layer = 1"),
      std::invalid_argument);
  kv_view<float> const longer(memory.data(), 1, 2, 50, 64);  // than a row of the ledger's weights
  CHECK_NOTHROW(gpu::weights_async(stream, args, gpu::ledger_slots<h2o>{books.view(), 0}, longer));
}

}  // namespace adore::testing
