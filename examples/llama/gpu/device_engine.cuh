// SPDX-License-Identifier: Apache-2.0
// The forward pass of a Llama-family model on the device, with the library as its whole KV cache:
// the host's `engine` again, one token per row and step, and no host in between.
#pragma once

#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_model.cuh"
#include "llama/gpu/handles.cuh"
#include "llama/gpu/matrix_product.cuh"
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/rope.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace llama_example::gpu {

/// Sees each group's attention: enqueues its own kernels on the stream that it is given. Called in
/// steps that are launched or captured; in replays only its kernels run.
struct attention_watch {
  using call = std::function<void(cudaStream_t stream, std::size_t group, int layer)>;
  call before{};  ///< the group's attention, after that of group 0; not called for group 0
  call after{};   ///< the group's attention
};

struct device_engine_options {
  bool graph = true;    ///< capture the step and replay it; false: launch each kernel anew
  bool greedy = false;  ///< each step leaves the best next token in `ids`
  attention_watch watch{};
};

/// The rows of all groups are one batch, group after group.
template <class T>
class device_engine {
 public:
  /// @param groups  caches of different policies; model and caches must outlive the engine
  /// @throws std::invalid_argument if a cache has another shape than the model, or none of its
  ///         kernels takes so many query heads per KV head
  device_engine(device_model<T> const& weights,
                std::vector<device_cache<T>*> groups,
                device_engine_options options = {});

  /// New tokens of a step.
  int rows() const noexcept { return rows_; }
  int first_row(std::size_t group) const { return first_row_[group]; }
  cudaStream_t stream() const noexcept { return stream_.get(); }

  /// The tokens of the coming step, [row], device memory: write them on `stream()`.
  std::int32_t* ids() noexcept { return ids_.data(); }
  /// The same from the host. Synchronises.
  /// @throws std::invalid_argument for another number of ids, or one that is no token
  void set_ids(std::span<std::int32_t const> ids);

  /// One step of all rows, on `stream()`; returns before it is done. A row without an open sequence
  /// takes part with numbers that mean nothing.
  void step_async();

  /// [row, vocabulary] of the last step, device memory.
  float const* logits() const noexcept { return logits_.data(); }

 private:
  void enqueue();
  void attend(int layer);
  void attend_group(std::size_t group, int layer, cudaStream_t stream);
  void capture();

  device_model<T> const& weights_;
  std::vector<device_cache<T>*> groups_;
  device_engine_options options_;
  std::vector<int> first_row_;      // [group]
  std::vector<int> first_rebuilt_;  // [group] its released tokens that are computed again, behind
                                    // all new ones
  int rows_ = 0, tokens_ = 0;       // new ones, all of the step

  stream_owner stream_;
  std::vector<stream_owner> side_streams_;  // for groups beside each other
  event_owner forked_;
  std::vector<event_owner> joined_;  // [side stream]
  matrix_product multiply_;
  adore::gpu::device_rope rope_;
  graph_owner graph_;
  bool warm_ = false;

  adore::gpu::device_buffer<std::int32_t> ids_;  // [token]
  adore::gpu::device_buffer<float> x_;           // [token, width]
  adore::gpu::device_buffer<T> normed_, added_;  // [token, width]
  adore::gpu::device_buffer<T> qkv_;             // [token, heads + 2 kv_heads, channel]
  adore::gpu::device_buffer<T> attended_;        // [token, head, channel]
  adore::gpu::device_buffer<T> gate_up_;         // [token, 2, hidden]
  adore::gpu::device_buffer<T> gated_;           // [token, hidden]
  adore::gpu::device_buffer<float> logits_;      // [row, vocabulary]
};

}  // namespace llama_example::gpu
