// SPDX-License-Identifier: Apache-2.0
// adore appends and releases in FlashInfer's pages, FlashInfer attends: its output is that of a
// literal attention over the tokens that the host's books keep.
#include "flashinfer/flashinfer_decode.cuh"
#include "flashinfer/flashinfer_pages.cuh"
#include "flashinfer/flashinfer_tensor_decode.cuh"
#include "flashinfer/paged_kv_of.cuh"
#include "support/agreement.cuh"
#include "support/all_tokens.cuh"
#include "support/engine_pages.cuh"
#include <adore/gpu/append.cuh>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/weights.cuh>
#include <adore/policies/h2o.hpp>
#include <adore/policies/streaming_llm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

namespace adore::testing {
namespace {

using element = __nv_bfloat16;
using gpu::page_layout;
constexpr int channels = 128;
using on_cuda_cores = flashinfer_example::flashinfer_decode<element, channels>;
using on_tensor_cores = flashinfer_example::flashinfer_tensor_decode<element, channels>;
constexpr page_layout nhd = page_layout::nhd, hnd = page_layout::hnd;

struct step_case {
  index_t page_size = 16;
  page_layout layout = nhd;
  index_t group = 1;  ///< query heads of a KV head
  scope reach = scope::model;
  index_t rows = 3, layers = 2;
  int steps = 120;
  int look_every = 1;     ///< steps from one literal attention to the next
  double out_off = 2e-3;  ///< allowed beside one rounding of the output
  double lse_off = 1e-4;
};

/// An engine that keeps its own attention, beside the host's books.
template <class P, class Decode>
class paged_run {
 public:
  paged_run(P const& policy, step_case const& c)
      : case_(c),
        shape_{c.rows, c.layers, 2, policy.budget() + 1, channels},
        device_(policy, shape_, c.reach),
        host_(policy, shape_, c.reach, 1) {}

  void check() {
    for (int step = 0; step < case_.steps; ++step) {
      begin(step);
      for (index_t layer = 0; layer < case_.layers; ++layer) attend(step, layer);
      decide_on_host();
      decide_on_device();
      if (step % 10 != 9) continue;
      for_open_rows([&](index_t row) {
        auto copy = on_host(device_, stream_, row);
        compare_kept(copy, host_, row, kept_);
      });
    }
    CHECK(worst_out_ <= 1.0);
    CHECK(worst_lse_ <= case_.lse_off);
    CHECK(worst_sum_ <= case_.lse_off);
    CHECK(worst_own_out_ <= 1.0);
    CHECK(worst_own_lse_ <= case_.lse_off);
    CHECK(kept_.lanes > 0);
    CHECK(kept_.differences == 0);
    CHECK(device_.tokens_without_room(stream_) == 0);
  }

 private:
  static std::size_t count(index_t n) { return static_cast<std::size_t>(n); }
  static void note(double& worst, double difference) {
    if (!std::isnan(worst) && !(std::abs(difference) <= worst)) worst = std::abs(difference);
  }
  template <class Visit>
  void for_open_rows(Visit&& visit) {
    for (index_t row = 0; row < case_.rows; ++row) {
      if (host_.is_open(row)) visit(row);
    }
  }

  /// Slots for the new tokens, pages for these, a plan for the pages.
  void begin(int step) {
    if (step % 5 == 0 && step / 5 < case_.rows) {  // ragged: rows begin at different times
      device_.open_async(stream_, step / 5);
      host_.open(step / 5, 0);
    }
    std::vector<index_t> counts(count(case_.rows), 0);
    lengths_ = counts;
    for_open_rows([&](index_t row) {
      counts[count(row)] = 1;
      lengths_[count(row)] = std::min(host_.next_position(row), host_.policy().budget()) + 1;
      for (index_t lane = 0; lane < host_.lanes_per_row(); ++lane) {
        host_.place(row * host_.lanes_per_row() + lane, 1);
      }
    });
    device_.set_counts(stream_, counts);
    decode_.plan(
        stream_, pages_.resize_async(stream_, lengths_), heads_, shape_.kv_heads, case_.page_size);
  }

  void attend(int step, index_t layer) {
    auto const seed = static_cast<std::uint64_t>(1000 * step + 10 * layer);
    auto const new_q = random_elements<element>(q_.size(), seed, 2.0F);
    auto const new_k = random_elements<element>(k_.size(), seed + 1);
    auto const new_v = random_elements<element>(v_.size(), seed + 2);
    q_.copy_from_async(new_q, stream_);
    k_.copy_from_async(new_k, stream_);
    v_.copy_from_async(new_v, stream_);
    token_view<element const> const q(q_.data(), case_.rows, heads_, channels);
    token_view<element const> const k(k_.data(), case_.rows, shape_.kv_heads, channels);
    token_view<element const> const v(v_.data(), case_.rows, shape_.kv_heads, channels);
    auto const kv =
        flashinfer_example::paged_kv_of(pages_.store().keys(layer), pages_.store().values(layer));
    auto const keys = flashinfer_example::keys_of(kv, shape_.slots);
    auto const values = flashinfer_example::values_of(kv, shape_.slots);
    auto const& books = device_.view();
    gpu::append_async(stream_, books, layer, keys, values, k, v);
    decode_.attend_async(stream_, kv, q, {out_.data(), case_.rows, heads_, channels}, lse_.data());
    gpu::weights_args<element> received;
    received.q = q;
    received.lse = lse_.data();
    received.out = weights_.data() + layer_weights_ * count(layer);
    gpu::weights_async(stream_, received, gpu::ledger_slots<P>{books, layer}, keys);
    // adore's own attention in the same pages, where it appends the same tokens once more
    gpu::attend_args<element, gpu::paged_view<element>> own;
    own.q = q;
    own.k = k;
    own.v = v;
    own.keys = keys;
    own.values = values;
    own.out = {own_out_.data(), case_.rows, heads_, channels};
    own.lse = own_lse_.data();
    own.layer = layer;
    own.decides = false;
    gpu::attend_async<channels, 8>(stream_, own, books, device_.policy());
    for_open_rows([&](index_t row) {
      std::size_t const first = count(row * shape_.kv_heads) * channels;
      tokens_.append(layer, row, new_k.data() + first, new_v.data() + first);
    });
    compare_outputs(layer, new_q, step % case_.look_every == 0);
  }

  void compare_outputs(index_t layer, std::vector<element> const& q, bool literally) {
    auto const out = out_.to_host(stream_), own_out = own_out_.to_host(stream_);
    auto const lse = lse_.to_host(stream_), own_lse = own_lse_.to_host(stream_);
    auto const note_out = [&](double& worst, element got, double wanted, int roundings) {
      note(worst,
           (number(got) - wanted) /
               (case_.out_off + roundings * grain<element>() * std::abs(wanted)));
    };
    for_open_rows([&](index_t row) {
      for (index_t head = 0; head < heads_; ++head) {
        std::size_t const query = count(row * heads_ + head);
        element const* const got = out.data() + query * channels;
        note(worst_own_lse_, lse[query] - own_lse[query]);
        for (std::size_t i = 0; i < channels; ++i) {
          note_out(worst_own_out_, got[i], number(own_out[query * channels + i]), 2);
        }
        if (!literally) continue;
        index_t const kv_head = head / case_.group;
        auto const kept = host_.kept(host_.lane(row, layer, kv_head));
        auto const exact = tokens_.attend(layer, row, kv_head, kept, q.data() + query * channels);
        note(worst_lse_, lse[query] - exact.lse);
        for (std::size_t i = 0; i < channels; ++i) note_out(worst_out_, got[i], exact.out[i], 1);
      }
    });
  }

  /// From the weights that the device has, token by token; sums in the device's order.
  void decide_on_host() {
    auto const weights = weights_.to_host(stream_);
    auto const& view = device_.view();
    std::vector<position_t> positions(count(case_.rows * view.lanes_per_row() * view.stride));
    gpu::check(cudaMemcpy(positions.data(),
                          view.positions,
                          positions.size() * sizeof(position_t),
                          cudaMemcpyDeviceToHost));
    for_open_rows([&](index_t row) {
      for (index_t in_row = 0; in_row < host_.lanes_per_row(); ++in_row) {
        index_t const lane = row * host_.lanes_per_row() + in_row;
        position_t const* const here = positions.data() + view.cell(lane);
        lane_slots<P> const books = host_.slots_of(lane);
        lane_extent const extent = host_.extent_of(lane);
        std::vector<float> received(count(shape_.slots), 0.0F);
        for (index_t s = 0; s < shape_.slots; ++s) {
          if (books.positions[s] < 0) continue;
          auto const slot = std::find(here, here + shape_.slots, books.positions[s]) - here;
          REQUIRE(slot < lengths_[count(row)]);  // the slots that FlashInfer attends
          for (index_t layer = extent.first_layer; layer < extent.end_layer; ++layer) {
            for (index_t head = extent.first_head; head < extent.end_head; ++head) {
              received[count(s)] +=
                  weights[layer_weights_ * count(layer) +
                          count(row * shape_.kv_heads + head) * count(view.stride) +
                          static_cast<std::size_t>(slot)];
            }
          }
        }
        index_t const queries = (extent.end_layer - extent.first_layer) *
                                (extent.end_head - extent.first_head) * case_.group;
        note(worst_sum_, std::accumulate(received.begin(), received.end(), 0.0) / queries - 1.0);
        host_.commit(lane, 1, observes_attention<P> ? received.data() : nullptr);
      }
      host_.advance(row, 1);
    });
  }

  void decide_on_device() {
    bool const at_once = case_.reach == scope::model;
    for (index_t layer = 0; layer < (at_once ? 1 : case_.layers); ++layer) {
      float const* const received = weights_.data() + layer_weights_ * count(layer);
      gpu::decide_async(stream_,
                        device_.view(),
                        device_.policy(),
                        layer,
                        {.weights = received, .advances = at_once});
    }
    if (!at_once) gpu::advance_async(stream_, device_.view());
  }

  test_stream stream_;
  step_case case_;
  kv_shape shape_;
  index_t heads_ = shape_.kv_heads * case_.group;
  gpu::device_ledger<P> device_;
  ledger<P> host_;
  engine_pages<element> pages_{shape_, case_.page_size, case_.layout};
  all_tokens<element> tokens_{shape_};
  Decode decode_;
  std::vector<index_t> lengths_;  // [row] slots that FlashInfer attends
  std::size_t queries_ = count(case_.rows * heads_), new_ = count(case_.rows * shape_.kv_heads);
  gpu::device_buffer<element> q_{queries_ * channels}, k_{new_ * channels}, v_{new_ * channels};
  gpu::device_buffer<element> out_{queries_ * channels}, own_out_{queries_ * channels};
  gpu::device_buffer<float> lse_{queries_}, own_lse_{queries_};
  std::size_t layer_weights_ = new_ * count(device_.view().stride);
  gpu::device_buffer<float> weights_{layer_weights_ * count(case_.layers)};  // [layer, ..., slot]
  // largest differences, from the literal and from adore's own; outputs in units of what is allowed
  double worst_out_ = 0.0, worst_lse_ = 0.0, worst_sum_ = 0.0;
  double worst_own_out_ = 0.0, worst_own_lse_ = 0.0;
  agreement kept_;
};

template <class Decode = on_cuda_cores, class P>
void check_steps(P const& policy, step_case const& c) {
  CAPTURE(c.page_size);
  CAPTURE(c.group);
  paged_run<P, Decode>(policy, c).check();
}

constexpr h2o heavy{.heavy = 20, .recent = 18};
constexpr streaming_llm window{.sinks = 4, .window = 30};

}  // namespace

TEST_CASE("FlashInfer attends what h2o keeps, and h2o decides by FlashInfer's log-sum-exp") {
  for (page_layout const layout : {nhd, hnd}) {
    for (index_t const group : {1, 4}) {
      check_steps(heavy, {.page_size = 1, .layout = layout, .group = group});
      check_steps(heavy, {.page_size = 16, .layout = layout, .group = group});
    }
  }
}
TEST_CASE("FlashInfer attends what streaming_llm keeps") {
  for (page_layout const layout : {nhd, hnd}) {
    check_steps(window, {.page_size = 1, .layout = layout, .group = 4});
    check_steps(window, {.page_size = 16, .layout = layout, .group = 1});
  }
}
TEST_CASE("layers and KV heads that keep different tokens share a page table") {
  check_steps(heavy, {.page_size = 16, .layout = hnd, .group = 4, .reach = scope::kv_head});
  check_steps(heavy, {.page_size = 1, .layout = nhd, .group = 1, .reach = scope::layer});
}
TEST_CASE("FlashInfer divides long lanes among blocks, and takes tensor cores") {
  step_case c{.page_size = 16, .layout = nhd, .group = 4, .rows = 2, .layers = 1, .steps = 560};
  c.look_every = 40;
  c.out_off = 1e-2;  // the parts are bf16 themselves
  check_steps(h2o{.heavy = 250, .recent = 250}, c);
  c.lse_off = 4e-3;  // probabilities are added up as bf16
  check_steps<on_tensor_cores>(h2o{.heavy = 250, .recent = 250}, c);
  c.steps = 80;
  c.look_every = 1;
  for (index_t const page_size : {1, 16}) {
    c.page_size = page_size;
    c.layout = hnd;
    check_steps<on_tensor_cores>(heavy, c);
  }
}

}  // namespace adore::testing
