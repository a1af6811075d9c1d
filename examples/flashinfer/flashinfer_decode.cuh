// SPDX-License-Identifier: Apache-2.0
// FlashInfer's batch decode attention over pages, called from C++: one token per sequence, on CUDA
// cores, which is its default.
#pragma once

#include "decode_memory.cuh"
#include <adore/gpu/error.cuh>
#include <adore/kv_view.hpp>

#include <cuda_runtime_api.h>

#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/scheduler.cuh>

#include <cmath>
#include <cstdint>
#include <vector>

namespace flashinfer_example {

/// Plan and launch.
///
/// Memory: that of `decode_memory`.
template <class T, int Channels>
class flashinfer_decode {
 public:
  using index_t = adore::index_t;
  using pages = flashinfer::paged_kv_t<T, index_t>;

  /// Divides the work among blocks; holds until a sequence has other pages.
  ///
  /// @param page_ranges  [sequence + 1], as `pages::indptr`, on the host
  /// @throws flashinfer::Error for 5, 7, 9 to 15 or more than 16 query heads per KV head
  /// Stream: enqueues a copy, so not while a graph is being captured.
  void plan(cudaStream_t stream,
            std::vector<index_t> page_ranges,
            index_t heads,
            index_t kv_heads,
            index_t page_size) {
    auto const sequences = static_cast<std::uint32_t>(page_ranges.size() - 1);
    index_t const group_size = heads / kv_heads;
    DISPATCH_GQA_GROUP_SIZE(group_size, GROUP_SIZE, {
      adore::gpu::check(flashinfer::DecodePlan<Channels, unturned, plain_attention, params>(
          memory_.parts.data(),
          memory_.parts.bytes(),
          memory_.plan.data(),
          memory_.staged_plan.data(),
          memory_.plan.bytes(),
          plan_,
          page_ranges.data(),
          sequences,
          static_cast<std::uint32_t>(heads),
          static_cast<std::uint32_t>(page_size),
          /*enable_cuda_graph, which pads for sequences that grow*/ false,
          stream,
          flashinfer::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<GROUP_SIZE,
                                                                          Channels,
                                                                          unturned,
                                                                          plain_attention,
                                                                          params>));
    });
  }

  /// @param q, out  [sequence, head, channel]
  /// @param lse     [sequence, head] natural log of the sum of exponentials; or nullptr
  /// Stream: asynchronous, capturable.
  void attend_async(cudaStream_t stream,
                    pages const& kv,
                    adore::token_view<T const> q,
                    adore::token_view<T> out,
                    float* lse) {
    params of(const_cast<T*>(q.data),
              /*q_rope_offset*/ nullptr,
              kv,
              out.data,
              lse,
              /*maybe_alibi_slopes*/ nullptr,
              static_cast<std::uint32_t>(q.heads),
              static_cast<index_t>(q.token_stride),
              static_cast<index_t>(q.head_stride),
              /*window_left*/ -1,
              /*logits_soft_cap*/ 0.0F,
              1.0F / std::sqrt(static_cast<float>(Channels)),
              /*rope_scale*/ 1.0F,
              /*rope_theta*/ 1.0F);
    of.padded_batch_size = static_cast<std::uint32_t>(plan_.padded_batch_size);
    of.request_indices = memory_.planned(plan_.request_indices_offset);
    of.kv_tile_indices = memory_.planned(plan_.kv_tile_indices_offset);
    of.o_indptr = memory_.planned(plan_.o_indptr_offset);
    of.kv_chunk_size_ptr = memory_.planned(plan_.kv_chunk_size_ptr_offset);
    bool const divided = plan_.split_kv;
    adore::gpu::check(
        flashinfer::
            BatchDecodeWithPagedKVCacheDispatched<Channels, unturned, plain_attention, params>(
                of,
                divided ? memory_.part<T>(plan_.v_offset) : nullptr,
                divided ? memory_.part<float>(plan_.s_offset) : nullptr,
                /*enable_pdl, its default for Hopper*/ true,
                stream));
    to_natural_logarithm_async(stream, lse, static_cast<int>(kv.batch_size) * q.heads);
  }

 private:
  using params = flashinfer::BatchDecodeParams<T, T, T, index_t>;
  static constexpr auto unturned = flashinfer::PosEncodingMode::kNone;

  decode_memory memory_;
  flashinfer::DecodePlanInfo plan_;
};

}  // namespace flashinfer_example
