// SPDX-License-Identifier: Apache-2.0
// `device_cache` for one policy and head size: the library's store, books and stages put together.
// Read `attend_async` first: it is all that an engine does to use the library on the device.
#pragma once

#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/handles.cuh"
#include <adore/gpu/append_rebuilt.cuh>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_controller.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/device_rebuild.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/gpu/device_tier.cuh>
#include <adore/gpu/key_norms.cuh>
#include <adore/gpu/token_ids.cuh>
#include <adore/gpu/token_scores.cuh>
#include <adore/policies/adaptive_release.hpp>
#include <adore/policies/h2o.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace llama_example::gpu {

/// Attention with guests is a kernel of its own: it is not compiled for every policy.
template <class P>
inline constexpr bool may_rebuild =
    std::is_same_v<P, adore::adaptive_release> || std::is_same_v<P, adore::h2o>;

template <class T, int Channels, adore::described P>
class policy_cache final : public device_cache<T> {
 public:
  /// @param tokens  of the longest sequence
  policy_cache(adore::kv_shape const& shape,
               P const& policy,
               adore::index_t tokens,
               device_cache_options const& options)
      : policy_(policy),
        store_(shape),
        ledger_(policy,
                shape,
                options.reach.value_or(P::default_scope),
                1,
                0,
                options.rebuild.count,
                options.rebuild.count > 0 ? tokens : 0),
        hearing_(ledger_.view()) {
    if constexpr (adore::scores_tokens<P>) listen(options, tokens);
    if (options.rebuild.count > 0 && !may_rebuild<P>) {
      throw std::invalid_argument(std::string(P::name) +
                                  ": on the device tokens come back under adaptive_release and h2o "
                                  "only, which are compiled for it");
    }
    if (options.rebuild.count > 0) rebuild_.emplace(options.rebuild, ledger_.view());
    if (rebuild_ && rebuild_->restores()) {
      tier_.emplace(shape, tokens, std::get<adore::restore>(options.rebuild.schedule).limit_bytes);
      side_ = make_stream();
      forked_ = make_event(cudaEventDisableTiming);
      for (adore::index_t layer = 0; layer < shape.layers; ++layer) {
        moved_.push_back(make_event(cudaEventDisableTiming));
      }
    }
    // lanes of one KV head are decided on in the attention kernel; longer ones need what it saw
    bool const outlives_layer = reach() != adore::scope::kv_head;
    bool const observes = outlives_layer && adore::observes_attention<P>;
    std::size_t const copies =
        reach() == adore::scope::model ? static_cast<std::size_t>(shape.layers) : 1;
    auto const heads = static_cast<std::size_t>(shape.sequences * shape.kv_heads);
    if (observes || options.exports_weights) {
      auto const stride = static_cast<std::size_t>(ledger_.view().stride);
      weights_ = adore::gpu::device_buffer<float>(copies * heads * stride);
    }
    if (adore::scores_keys<P>) {
      key_norms_ = adore::gpu::device_buffer<float>(copies * heads);
    }
  }

  std::string policy() const override { return adore::to_text(policy_); }
  adore::index_t nominal_budget() const override { return adore::nominal_budget_of(policy_); }
  adore::scope reach() const override { return ledger_.view().reach; }
  adore::kv_shape shape() const override { return store_.shape(); }
  adore::index_t most_heads_per_kv_head() const override { return widest_group; }
  bool hides_tokens() const override {
    return adore::masks_attention<P> || adore::limits_attention<P>;
  }

  void open_async(cudaStream_t stream, adore::index_t row, std::uint64_t seed) override {
    ledger_.open_async(stream, row, seed);
  }
  void close_async(cudaStream_t stream, adore::index_t row) override {
    ledger_.close_async(stream, row);
  }

  adore::index_t rebuilt_rows() const override { return rebuild_ ? rebuild_->pool() : 0; }
  void begin_step_async(cudaStream_t stream,
                        adore::index_t* ids,
                        adore::index_t first_rebuilt) override {
    auto const& books = ledger_.view();
    if constexpr (adore::reads_tokens<P>) hearing_.hear_async(stream, books, policy_, ids);
    if constexpr (adore::scores_tokens<P>) {
      controller_->step_async(stream, books, ids);
      adore::gpu::give_scores_async(
          stream, books, policy_, controller_->scores(), !controller_->rescores());
    }
    if (tier_) tier_->begin_step_async(stream, books);
    if (rebuild_) rebuild_->begin_step_async(stream, books, policy_, first_rebuilt, ids);
    if (tier_) move_beside(stream);
  }

  void attend_async(cudaStream_t stream,
                    adore::gpu::rope_view const& rope,
                    adore::index_t layer,
                    step_tensors<T> const& x) override {
    auto const& books = ledger_.view();
    adore::index_t const rows = books.row_count;
    if (tier_) check(cudaStreamWaitEvent(stream, moved_[static_cast<std::size_t>(layer)].get()));
    if constexpr (adore::scores_keys<P>) {  // before they are turned, as the host does
      adore::gpu::measure_keys_async(stream, books, x.k, part_of(key_norms_, layer));
    }
    adore::gpu::step_positions const of_new(books);
    if (rebuilt_rows() > 0) {
      auto const back = rebuild_->tokens();
      adore::gpu::rotate_async(
          stream,
          rope,
          adore::gpu::step_and_rebuilt_positions{of_new, back.positions, rows, x.first_rebuilt},
          x.q,
          x.k);
      adore::gpu::append_rebuilt_async(stream,
                                       back,
                                       store_.keys(layer),
                                       store_.values(layer),
                                       part_of(x.k, x.first_rebuilt, back.count),
                                       part_of(x.v, x.first_rebuilt, back.count));
    } else if constexpr (adore::numbers_tokens<P>) {
      adore::gpu::rotate_async(
          stream, rope, adore::gpu::numbered_positions<P>{books, policy_, layer}, x.q, x.k);
    } else {
      adore::gpu::rotate_async(stream, rope, of_new, x.q, x.k);
    }
    if constexpr (may_rebuild<P>) {
      if (rebuild_) {
        attend<adore::gpu::rebuilt_queries>(stream, layer, x, rebuild_->queries());
        return;
      }
    }
    attend<adore::gpu::no_guests>(stream, layer, x, {});
  }
  void end_step_async(cudaStream_t stream) override {
    if (rebuild_) rebuild_->end_step_async(stream, ledger_.view());
    if (reach() == adore::scope::model) {
      adore::gpu::decide_async(
          stream,
          ledger_.view(),
          policy_,
          0,
          {.weights = weights_.data(), .key_norms = key_norms_.data(), .advances = true});
    } else {
      adore::gpu::advance_async(stream, ledger_.view());
    }
  }

  layer_positions positions(adore::index_t layer) const override {
    auto const& books = ledger_.view();
    auto const stride = std::int64_t{books.stride};
    return {.positions = books.positions + books.cell(books.lane(0, layer, 0)),
            .row_stride = books.lanes_per_row() * stride,
            .head_stride = books.reach == adore::scope::kv_head ? stride : 0,
            .rows = books.rows,
            .row_count = books.row_count,
            .kv_heads = books.kv_heads,
            .slots = books.slots};
  }
  layer_weights_view weights(adore::index_t layer) const override {
    return {part_of(weights_, layer), ledger_.view().stride};
  }

  std::vector<adore::position_t> kept(cudaStream_t stream,
                                      adore::index_t row,
                                      adore::index_t layer,
                                      adore::index_t kv_head) const override {
    return ledger_.kept(stream, ledger_.view().lane(row, layer, kv_head));
  }
  unsigned tokens_without_room(cudaStream_t stream) const override {
    return ledger_.tokens_without_room(stream);
  }
  std::size_t allocated_bytes() const override { return store_.allocated_bytes(); }
  std::size_t live_bytes(cudaStream_t stream) const override {
    auto const& books = ledger_.view();
    auto const lanes = books.row_count * books.lanes_per_row();
    std::vector<adore::gpu::lane_books> here(static_cast<std::size_t>(lanes));
    adore::gpu::check(cudaMemcpyAsync(here.data(),
                                      books.lanes,
                                      here.size() * sizeof(adore::gpu::lane_books),
                                      cudaMemcpyDeviceToHost,
                                      stream));
    adore::gpu::check(cudaStreamSynchronize(stream));
    std::size_t tokens = 0;
    for (auto const& lane : here) tokens += static_cast<std::size_t>(lane.occupied);
    // how many [layer, kv_head] pairs share a lane
    auto const shared =
        static_cast<std::size_t>(books.layers * books.kv_heads / books.lanes_per_row());
    return tokens * shared * 2 * Channels * sizeof(T);
  }

  std::unique_ptr<device_cache<T>> alone(cudaStream_t stream, adore::index_t row) override {
    adore::kv_shape shape = store_.shape();
    shape.sequences = 1;
    if (adore::scores_tokens<P> || rebuild_) return nullptr;
    device_cache_options const options{.reach = reach(), .exports_weights = false};
    auto copy = std::make_unique<policy_cache>(shape, policy_, 0, options);
    copy->ledger_.restore(stream, 0, ledger_.snapshot(stream, row));
    std::size_t const bytes = static_cast<std::size_t>(shape.kv_heads) *
                              static_cast<std::size_t>(shape.slots) * Channels * sizeof(T);
    for (adore::index_t layer = 0; layer < shape.layers; ++layer) {
      for (auto const& [to, from] : {std::pair{copy->store_.keys(layer), store_.keys(layer)},
                                     std::pair{copy->store_.values(layer), store_.values(layer)}}) {
        adore::gpu::check(
            cudaMemcpyAsync(to(0, 0, 0), from(row, 0, 0), bytes, cudaMemcpyDeviceToDevice, stream));
      }
    }
    adore::gpu::check(cudaStreamSynchronize(stream));
    return copy;
  }

  adore::rebuild_counts rebuild_cost(cudaStream_t stream) const override {
    return rebuild_ ? rebuild_->counts(stream) : adore::rebuild_counts{};
  }
  tier_traffic tier_cost(cudaStream_t stream) const override {
    if (!tier_) return {};
    std::size_t const bytes = tier_->bytes_of_token();
    return {tier_->bytes(),
            tier_->tokens_stowed(stream) * bytes,
            rebuild_->counts(stream).entered * bytes};
  }

 private:
  // Query heads per KV head. Models with more than 8 (Llama 3.1 405B and Qwen3 235B have 16) have
  // heads of 128 channels and are run for speed: only for those more kernels are compiled. What
  // limits attention has one kernel for all.
  static constexpr adore::index_t narrow_group = 8;
  static constexpr adore::index_t widest_group =
      (Channels == 128 && !std::is_same_v<T, float>) || adore::limits_attention<P> ? 16
                                                                                   : narrow_group;

  void listen(device_cache_options const& options, adore::index_t tokens) {
    if (options.controller == nullptr) {
      throw std::invalid_argument(std::string(P::name) +
                                  " ranks by a controller's scores: give one");
    }
    adore::kv_shape const shape = store_.shape();
    controller_.emplace(*options.controller,
                        static_cast<T const*>(options.embeddings),
                        options.vocabulary,
                        shape.sequences,
                        tokens);
    if (options.rebuild.count == 0) return;
    if (controller_->outputs() != 1) {
      throw std::invalid_argument(
          "tokens come back for all layers at once: the controller must have "
          "one output, not " +
          std::to_string(controller_->outputs()));
    }
    controller_->write_to(ledger_.view().past.priorities);
  }
  template <class Guests>
  void attend(cudaStream_t stream,
              adore::index_t layer,
              step_tensors<T> const& x,
              Guests const& rebuilt) {
    adore::gpu::attend_args<T, adore::kv_view<T>, Guests> args{.q = x.q,
                                                               .k = x.k,
                                                               .v = x.v,
                                                               .keys = store_.keys(layer),
                                                               .values = store_.values(layer),
                                                               .out = x.out};
    args.weights = part_of(weights_, layer);
    args.key_norms = part_of(key_norms_, layer);
    args.layer = layer;
    args.rebuilt = rebuilt;
    // the kernel before turns q and k; only one that appends rebuilt tokens writes to the cache
    args.overlaps = rebuilt_rows() == 0;
    args.cut_for_lanes = ledger_.view().attended_lanes();
    auto const& books = ledger_.view();
    // kernels of 16 query rows are for groups that need them: smaller ones keep those of 8, also
    // where rebuilt tokens bring more rows
    if (x.q.heads <= narrow_group * books.kv_heads) {
      adore::gpu::attend_async<Channels, narrow_group>(stream, args, books, policy_);
    } else {
      adore::gpu::attend_async<Channels, widest_group>(stream, args, books, policy_);
    }
    if (reach() == adore::scope::layer) {
      adore::gpu::decide_async(
          stream,
          books,
          policy_,
          layer,
          {.weights = args.weights, .key_norms = args.key_norms, .overlaps = true});
    }
  }
  /// Layer by layer, ahead of the step's attention, K and V go to the host and come back.
  void move_beside(cudaStream_t stream) {
    check(cudaEventRecord(forked_.get(), stream));
    check(cudaStreamWaitEvent(side_.get(), forked_.get()));
    for (adore::index_t layer = 0; layer < store_.shape().layers; ++layer) {
      tier_->move_layer_async(side_.get(),
                              rebuild_->tokens(),
                              ledger_.view().past.tokens,
                              layer,
                              store_.keys(layer),
                              store_.values(layer));
      check(cudaEventRecord(moved_[static_cast<std::size_t>(layer)].get(), side_.get()));
    }
  }
  /// Tokens first .. first + count - 1.
  template <class Element>
  static adore::token_view<Element> part_of(adore::token_view<Element> view,
                                            adore::index_t first,
                                            adore::index_t count) {
    view.data += first * view.token_stride;
    view.tokens = count;
    return view;
  }
  /// The layer's floats of a buffer for all layers (scope model), or the buffer for one.
  template <class Buffer>
  auto part_of(Buffer& buffer, adore::index_t layer) const {
    std::size_t const layers =
        reach() == adore::scope::model ? static_cast<std::size_t>(store_.shape().layers) : 1;
    std::size_t const which = layers > 1 ? static_cast<std::size_t>(layer) : 0;
    return buffer.size() == 0 ? nullptr : buffer.data() + which * (buffer.size() / layers);
  }

  P policy_;
  adore::gpu::device_store<T> store_;
  adore::gpu::device_ledger<P> ledger_;
  adore::gpu::device_hearing<P> hearing_;                    // of policies that read token ids
  std::optional<adore::gpu::device_controller> controller_;  // of policies that take scores
  std::optional<adore::gpu::device_rebuild<P>> rebuild_;
  std::optional<adore::gpu::device_tier<T>> tier_;  // of the schedule restore
  stream_owner side_;                               // on which K and V move
  event_owner forked_;
  std::vector<event_owner> moved_;              // [layer]
  adore::gpu::device_buffer<float> weights_;    // [layer or 1, row, kv_head, slot] or empty
  adore::gpu::device_buffer<float> key_norms_;  // [layer or 1, row, kv_head] or empty
};

}  // namespace llama_example::gpu
