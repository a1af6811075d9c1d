// SPDX-License-Identifier: Apache-2.0
// Attention reads K and V wherever an engine keeps them: the bits of the result are those of
// contiguous memory.
#include "support/attention_case.cuh"
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/paged_view.cuh>
#include <adore/policies/h2o.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

namespace adore::testing {
namespace {

using element = __nv_bfloat16;
constexpr int channels = 64;
constexpr attention_shape shape{3, 2, 2, 96, 2};
constexpr h2o policy{.heavy = 40, .recent = 20};

struct result {
  std::vector<element> out;
  std::vector<std::vector<position_t>> kept;
};

/// One step over the same books and tensors with K/V seen through the given views.
template <class View>
result step_through(attention_case<element, channels>& c, View keys, View values) {
  gpu::device_ledger<h2o> books(policy, c.cache, scope::kv_head, shape.max_new);
  std::mt19937_64 engine(5);
  for (index_t row = 0; row < shape.rows; ++row) {
    books.restore(
        nullptr, row, random_books(books.view(), 30 * row + 20, 30 * row + 50, 60, engine));
  }
  books.set_counts(nullptr, std::vector<index_t>{2, 1, 2});
  auto const same = c.args();
  gpu::attend_args<element, View> args{.q = same.q,
                                       .k = same.k,
                                       .v = same.v,
                                       .keys = keys,
                                       .values = values,
                                       .out = same.out,
                                       .lse = same.lse};
  c.out.fill_async(0, nullptr);
  gpu::attend_async<channels>(nullptr, args, books.view(), policy);
  result r{c.out.to_host(nullptr), {}};
  for (index_t lane = 0; lane < shape.rows * shape.kv_heads; ++lane) {
    r.kept.push_back(books.kept(nullptr, lane));
  }
  return r;
}

void check_same(result const& a, result const& b) {
  CHECK(std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(element)) == 0);
  CHECK(a.kept == b.kept);
}

result contiguous() {
  attention_case<element, channels> c(shape, 7);
  return step_through(c, c.keys_view(), c.values_view());
}

TEST_CASE("slots before heads, [sequence, slot, kv_head, channel]") {
  attention_case<element, channels> c(shape, 7);
  auto const turned = [&](std::vector<element> const& from) {
    std::vector<element> to(from.size());
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        for (index_t slot = 0; slot < shape.slots; ++slot) {
          std::copy_n(from.data() + ((row * shape.kv_heads + head) * shape.slots + slot) * channels,
                      channels,
                      to.data() + ((row * shape.slots + slot) * shape.kv_heads + head) * channels);
        }
      }
    }
    return gpu::device_buffer<element>(to);
  };
  auto keys = turned(c.keys);
  auto values = turned(c.values);
  auto const view = [](gpu::device_buffer<element>& data) {
    return kv_view<element>(data.data(),
                            shape.rows,
                            shape.kv_heads,
                            shape.slots,
                            channels,
                            stride_t{shape.slots} * shape.kv_heads * channels,
                            channels,
                            stride_t{shape.kv_heads} * channels,
                            1);
  };
  check_same(step_through(c, view(keys), view(values)), contiguous());
  // the new tokens went where they belong: nothing else changed
  auto const after = keys.to_host(nullptr);
  auto const before = turned(c.keys).to_host(nullptr);
  int changed = 0;
  for (std::size_t cell = 0; cell < after.size(); cell += channels) {
    changed += std::memcmp(&after[cell], &before[cell], channels * sizeof(element)) != 0;
  }
  CHECK(changed == (2 + 1 + 2) * shape.kv_heads);
}

void check_pages(index_t page_size, gpu::page_layout layout) {
  CAPTURE(page_size);
  attention_case<element, channels> c(shape, 7);
  index_t const pages_per_row = shape.slots / page_size;
  index_t const pages = shape.rows * pages_per_row;
  std::vector<index_t> indices(static_cast<std::size_t>(pages)), indptr, last;
  for (index_t p = 0; p < pages; ++p) indices[static_cast<std::size_t>(p)] = p;
  std::mt19937_64 engine(3);
  std::shuffle(indices.begin(), indices.end(), engine);
  for (index_t row = 0; row <= shape.rows; ++row) indptr.push_back(row * pages_per_row);
  last.assign(shape.rows, page_size);
  bool const hnd = layout == gpu::page_layout::hnd;
  auto const paged = [&](std::vector<element> const& from) {
    std::vector<element> to(from.size());
    for (index_t row = 0; row < shape.rows; ++row) {
      for (index_t head = 0; head < shape.kv_heads; ++head) {
        for (index_t slot = 0; slot < shape.slots; ++slot) {
          index_t const page =
              indices[static_cast<std::size_t>(row * pages_per_row + slot / page_size)];
          index_t const s = slot % page_size;
          index_t const cell = hnd ? (page * shape.kv_heads + head) * page_size + s
                                   : (page * page_size + s) * shape.kv_heads + head;
          std::copy_n(from.data() + ((row * shape.kv_heads + head) * shape.slots + slot) * channels,
                      channels,
                      to.data() + cell * channels);
        }
      }
    }
    return gpu::device_buffer<element>(to);
  };
  auto keys = paged(c.keys);
  auto values = paged(c.values);
  gpu::device_buffer<index_t> numbers(indices), ranges(indptr), lengths(last);
  auto const view = [&](gpu::device_buffer<element>& data) {
    return gpu::paged_view<element>(data.data(),
                                    layout,
                                    shape.rows,
                                    shape.kv_heads,
                                    shape.slots,
                                    channels,
                                    page_size,
                                    numbers.data(),
                                    ranges.data(),
                                    lengths.data());
  };
  check_same(step_through(c, view(keys), view(values)), contiguous());
}

TEST_CASE("pages of whole tiles, and pages that cut tiles") {
  for (index_t const page_size : {1, 4, 8, 16, 32, 48}) {
    check_pages(page_size, gpu::page_layout::hnd);
    check_pages(page_size, gpu::page_layout::nhd);
  }
}

}  // namespace
}  // namespace adore::testing
