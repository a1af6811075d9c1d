// SPDX-License-Identifier: Apache-2.0
// The device engine's KV cache: a policy chosen at run time behind one virtual call per layer and
// stage.
#pragma once

#include <adore/any_cache.hpp>
#include <adore/controller/weights.hpp>
#include <adore/gpu/ledger_view.cuh>
#include <adore/gpu/rope.cuh>
#include <adore/kv_view.hpp>
#include <adore/types.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llama_example::gpu {

/// One layer's tensors of a step: the cache's rows of the batch, a new token each, and from number
/// `first_rebuilt` on its tokens that are computed again.
template <class T>
struct step_tensors {
  adore::token_view<T> q;     // [token, head, channel], not yet turned
  adore::token_view<T> k, v;  // [token, kv_head, channel], not yet turned
  adore::token_view<T> out;   // [token, head, channel]
  adore::index_t first_rebuilt = 0;
};

/// Who sits in the slots of one layer, for kernels that watch a cache. A position up to and
/// including the row's `next` is attended in this step, until the step's decision.
struct layer_positions {
  adore::position_t const* positions;  // [row, kv_head, slot], with the strides below
  std::int64_t row_stride, head_stride;
  adore::gpu::row_books const* rows;
  adore::index_t row_count, kv_heads, slots;
};

/// One layer's attention of the step, if the cache exports it: probabilities reduced over the query
/// heads of the KV head.
struct layer_weights_view {
  float const* weights = nullptr;  // [row, kv_head, slot]; nullptr: not exported
  adore::index_t stride = 0;       // floats from one (row, kv_head) to the next
};

/// What a tier of released K and V holds at most, and has moved so far, in bytes.
struct tier_traffic {
  std::size_t allocated = 0, to_host = 0, from_host = 0;
};

/// A cache with original rotary positions for one new token per row and step. All pointers are
/// device memory; whatever ends in _async only enqueues, and may be captured into a graph.
template <class T>
class device_cache {
 public:
  virtual ~device_cache() = default;
  device_cache(device_cache const&) = delete;
  device_cache& operator=(device_cache const&) = delete;

  virtual std::string policy() const = 0;  ///< "name(field=value,...)"
  virtual adore::index_t nominal_budget() const = 0;
  virtual adore::scope reach() const = 0;
  virtual adore::kv_shape shape() const = 0;
  virtual adore::index_t most_heads_per_kv_head() const = 0;  ///< query heads; more: not compiled
  virtual bool hides_tokens() const = 0;  ///< attends only some of what it keeps

  virtual void open_async(cudaStream_t stream, adore::index_t row, std::uint64_t seed) = 0;
  virtual void close_async(cudaStream_t stream, adore::index_t row) = 0;

  /// Rows of the step for released tokens that are computed again, used or not.
  virtual adore::index_t rebuilt_rows() const = 0;
  /// Before the first layer: the controller hears the tokens, and who comes back is chosen.
  ///
  /// @param ids  [token] as in `step_tensors`: new ones are read, those that come back written
  virtual void begin_step_async(cudaStream_t stream,
                                adore::index_t* ids,
                                adore::index_t first_rebuilt) = 0;
  /// Turns q and k, keeps k and v, attends, and decides if the lanes end with the layer.
  virtual void attend_async(cudaStream_t stream,
                            adore::gpu::rope_view const& rope,
                            adore::index_t layer,
                            step_tensors<T> const& x) = 0;
  virtual void end_step_async(cudaStream_t stream) = 0;

  virtual layer_positions positions(adore::index_t layer) const = 0;
  virtual layer_weights_view weights(adore::index_t layer) const = 0;

  // ------------------------------------------------------------------ these synchronise
  virtual std::vector<adore::position_t> kept(cudaStream_t stream,
                                              adore::index_t row,
                                              adore::index_t layer,
                                              adore::index_t kv_head) const = 0;
  /// New tokens that were lost because a policy without a budget ran out of slots.
  virtual unsigned tokens_without_room(cudaStream_t stream) const = 0;
  virtual std::size_t allocated_bytes() const = 0;  ///< of K and V
  /// Bytes of K and V of the tokens that are kept now.
  virtual std::size_t live_bytes(cudaStream_t stream) const = 0;
  virtual adore::rebuild_counts rebuild_cost(cudaStream_t stream) const = 0;
  virtual tier_traffic tier_cost(cudaStream_t stream) const = 0;
  /// A cache of one row that goes on from what `row` holds, and exports nothing.
  virtual std::unique_ptr<device_cache> alone(cudaStream_t stream, adore::index_t row) = 0;

 protected:
  device_cache() = default;
};

struct device_cache_options {
  std::optional<adore::scope> reach{};  ///< default: the policy's
  bool exports_weights = false;         ///< `weights` is filled even if the policy needs none
  /// Scores tokens for a policy that takes scores, which needs one; read while the cache is made.
  adore::controller_weights const* controller = nullptr;
  void const* embeddings =
      nullptr;  ///< [vocabulary, width] of T, device memory; for the controller
  adore::index_t vocabulary = 0;
  adore::rebuild_options rebuild{};
};

/// A cache for the policy that `text` names, as `adore::make_cache` makes it on the host. To save
/// compile time, not every policy is there for each element type and head size.
///
/// @tparam T  float or __nv_bfloat16
/// @throws std::invalid_argument as there, and for a policy, or a head size, that is not there
template <class T>
std::unique_ptr<device_cache<T>> make_device_cache(std::string_view text,
                                                   adore::cache_request const& request,
                                                   device_cache_options const& options = {});

}  // namespace llama_example::gpu
