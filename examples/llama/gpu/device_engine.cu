// SPDX-License-Identifier: Apache-2.0
// Read `device_engine::enqueue` first: it is the forward pass from token ids to logits, in order.
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/layers.cuh"

#include <cuda_bf16.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace llama_example::gpu {

namespace {

constexpr std::size_t most_side_streams = 8;

std::size_t product_of(int a, int b) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

}  // namespace

template <class T>
device_engine<T>::device_engine(device_model<T> const& weights,
                                std::vector<device_cache<T>*> groups,
                                device_engine_options options)
    : weights_(weights),
      groups_(std::move(groups)),
      options_(std::move(options)),
      stream_(make_stream()),
      multiply_(stream_.get()),
      rope_(weights.numbers().rope_channels,
            weights.numbers().rope_base,
            adore::rope_pairs::adjacent,
            weights.numbers().rope_factors) {
  model const& m = weights_.numbers();
  for (device_cache<T> const* const cache : groups_) {
    adore::kv_shape const shape = cache->shape();
    if (shape.layers != m.layers || shape.kv_heads != m.kv_heads || shape.channels != m.channels) {
      throw std::invalid_argument("device_engine: a cache of " + std::to_string(shape.layers) +
                                  " layers, " + std::to_string(shape.kv_heads) + " KV heads and " +
                                  std::to_string(shape.channels) + " channels; the model has " +
                                  std::to_string(m.layers) + ", " + std::to_string(m.kv_heads) +
                                  " and " + std::to_string(m.channels));
    }
    if (adore::index_t const most = cache->most_heads_per_kv_head(); m.heads > most * m.kv_heads) {
      throw std::invalid_argument(
          "device_engine: the model has " + std::to_string(m.heads) + " query heads for " +
          std::to_string(m.kv_heads) + " KV heads; its attention is compiled for at most " +
          std::to_string(most) + " per KV head (16: bfloat16, heads of 128 channels)");
    }
    first_row_.push_back(rows_);
    rows_ += shape.sequences;
  }
  tokens_ = rows_;
  for (device_cache<T> const* const cache : groups_) {
    first_rebuilt_.push_back(tokens_);
    tokens_ += cache->rebuilt_rows();
  }
  if (rows_ == 0) throw std::invalid_argument("device_engine: there are no rows");
  if (groups_.size() > 2) {
    forked_ = make_event(cudaEventDisableTiming);
    for (std::size_t i = 0; i < std::min(groups_.size() - 1, most_side_streams); ++i) {
      side_streams_.push_back(make_stream());
      joined_.push_back(make_event(cudaEventDisableTiming));
    }
  }
  ids_ = adore::gpu::device_buffer<std::int32_t>(static_cast<std::size_t>(tokens_));
  x_ = adore::gpu::device_buffer<float>(product_of(tokens_, m.width));
  normed_ = adore::gpu::device_buffer<T>(product_of(tokens_, m.width));
  added_ = adore::gpu::device_buffer<T>(product_of(tokens_, m.width));
  qkv_ = adore::gpu::device_buffer<T>(product_of(tokens_, (m.heads + 2 * m.kv_heads) * m.channels));
  attended_ = adore::gpu::device_buffer<T>(product_of(tokens_, m.heads * m.channels));
  gate_up_ = adore::gpu::device_buffer<T>(product_of(tokens_, 2 * m.hidden));
  gated_ = adore::gpu::device_buffer<T>(product_of(tokens_, m.hidden));
  logits_ = adore::gpu::device_buffer<float>(product_of(rows_, m.vocabulary));
  ids_.fill_async(0, stream());  // a token, also for rows without a sequence
  attended_.fill_async(0, stream());
  check(cudaStreamSynchronize(stream()));
}

template <class T>
void device_engine<T>::set_ids(std::span<std::int32_t const> ids) {
  if (ids.size() != static_cast<std::size_t>(rows_)) {
    throw std::invalid_argument("device_engine: " + std::to_string(ids.size()) + " ids for " +
                                std::to_string(rows_) + " rows");
  }
  for (std::int32_t const id : ids) {
    if (id < 0 || id >= weights_.numbers().vocabulary) {
      throw std::invalid_argument("token id = " + std::to_string(id) + ": the model has " +
                                  std::to_string(weights_.numbers().vocabulary) + " tokens");
    }
  }
  ids_.copy_from_async(ids, stream());
  check(cudaStreamSynchronize(stream()));
}

/// The first step is never captured: in it, kernels are loaded and cuBLAS makes itself ready.
template <class T>
void device_engine<T>::step_async() {
  if (!options_.graph || !warm_) {
    enqueue();
    warm_ = true;
    return;
  }
  if (!graph_) capture();
  check(cudaGraphLaunch(graph_.get(), stream()));
}

template <class T>
void device_engine<T>::capture() {
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream(), &graph);  // else the stream stays unusable
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream(), &graph));
  cudaGraphExec_t executable = nullptr;
  cudaError_t const made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(made);
  graph_.reset(executable);
}

template <class T>
void device_engine<T>::enqueue() {
  model const& m = weights_.numbers();
  cudaStream_t const s = stream();
  auto const normalise = [&](adore::gpu::device_buffer<float> const& gain, T const* added) {
    add_and_normalise_async(
        s, x_.data(), added, gain.data(), m.norm_epsilon, normed_.data(), tokens_, m.width);
  };
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g]->begin_step_async(s, ids_.data() + first_row_[g], first_rebuilt_[g] - first_row_[g]);
  }
  embed_async(s, ids_.data(), weights_.embedding().data.data(), x_.data(), tokens_, m.width);

  T const* added = nullptr;  // by the layer before
  for (int layer = 0; layer < m.layers; ++layer) {
    device_layer<T> const& w = weights_.layers()[static_cast<std::size_t>(layer)];

    normalise(w.attention_norm, added);
    multiply_(w.query_key_value, normed_.data(), qkv_.data(), tokens_);
    attend(layer);
    multiply_(w.output, attended_.data(), added_.data(), tokens_);
    added = added_.data();

    normalise(w.feed_norm, added);
    multiply_(w.gate_up, normed_.data(), gate_up_.data(), tokens_);
    gate_async(s, gate_up_.data(), gated_.data(), tokens_, m.hidden);
    multiply_(w.down, gated_.data(), added_.data(), tokens_);
  }

  normalise(weights_.final_norm(), added);
  multiply_(weights_.head(), normed_.data(), logits_.data(), rows_);

  for (device_cache<T>* const cache : groups_) cache->end_step_async(s);
  if (options_.greedy) choose_best_async(s, logits_.data(), ids_.data(), rows_, m.vocabulary);
}

/// Each group's part of the batch goes through its own cache: group 0 first, since others may
/// compare themselves with it, then the others beside each other.
template <class T>
void device_engine<T>::attend(int layer) {
  attend_group(0, layer, stream());
  if (side_streams_.empty()) {
    for (std::size_t g = 1; g < groups_.size(); ++g) attend_group(g, layer, stream());
    return;
  }
  check(cudaEventRecord(forked_.get(), stream()));
  for (stream_owner const& side : side_streams_) {
    check(cudaStreamWaitEvent(side.get(), forked_.get()));
  }
  for (std::size_t g = 1; g < groups_.size(); ++g) {
    attend_group(g, layer, side_streams_[(g - 1) % side_streams_.size()].get());
  }
  for (std::size_t i = 0; i < side_streams_.size(); ++i) {
    check(cudaEventRecord(joined_[i].get(), side_streams_[i].get()));
    check(cudaStreamWaitEvent(stream(), joined_[i].get()));
  }
}

template <class T>
void device_engine<T>::attend_group(std::size_t group, int layer, cudaStream_t stream) {
  model const& m = weights_.numbers();
  device_cache<T>& cache = *groups_[group];
  int const first_rebuilt = first_rebuilt_[group] - first_row_[group];
  int const tokens =
      cache.rebuilt_rows() > 0 ? first_rebuilt + cache.rebuilt_rows() : cache.shape().sequences;
  int const per_token = (m.heads + 2 * m.kv_heads) * m.channels;  // of q, k and v, in this order
  T* const q = qkv_.data() + product_of(first_row_[group], per_token);
  T* const k = q + product_of(m.heads, m.channels);
  T* const v = k + product_of(m.kv_heads, m.channels);
  T* const out = attended_.data() + product_of(first_row_[group], m.heads * m.channels);

  if (options_.watch.before && group > 0) options_.watch.before(stream, group, layer);
  cache.attend_async(stream,
                     rope_.view(),
                     layer,
                     {.q = {q, tokens, m.heads, m.channels, per_token},
                      .k = {k, tokens, m.kv_heads, m.channels, per_token},
                      .v = {v, tokens, m.kv_heads, m.channels, per_token},
                      .out = {out, tokens, m.heads, m.channels},
                      .first_rebuilt = first_rebuilt});
  if (options_.watch.after) options_.watch.after(stream, group, layer);
}

template class device_engine<float>;
template class device_engine<__nv_bfloat16>;

}  // namespace llama_example::gpu
