// SPDX-License-Identifier: Apache-2.0
// FlashInfer's batch decode attention on tensor cores, called from C++: its prefill kernel with one
// query token per sequence, which it recommends for many query heads per KV head. The kernel is the
// one for all devices (FA2); that for Hopper alone needs CUTLASS.
#pragma once

#include "decode_memory.cuh"
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/error.cuh>
#include <adore/kv_view.hpp>

#include <cuda_runtime_api.h>

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace flashinfer_example {

/// As `flashinfer_decode`, for 1 to 16 query heads per KV head.
template <class T, int Channels>
class flashinfer_tensor_decode {
 public:
  using index_t = adore::index_t;
  using pages = flashinfer::paged_kv_t<T, index_t>;

  void plan(cudaStream_t stream,
            std::vector<index_t> page_ranges,
            index_t heads,
            index_t kv_heads,
            index_t page_size) {
    auto const sequences = static_cast<std::uint32_t>(page_ranges.size() - 1);
    std::vector<index_t> query_ranges(page_ranges.size());
    std::iota(query_ranges.begin(), query_ranges.end(), 0);
    if (query_ranges_.size() != query_ranges.size()) {  // always 0, 1, 2, ...
      query_ranges_ = adore::gpu::device_buffer<index_t>(query_ranges);
    }
    adore::gpu::check(flashinfer::PrefillPlan<index_t>(memory_.parts.data(),
                                                       memory_.parts.bytes(),
                                                       memory_.plan.data(),
                                                       memory_.staged_plan.data(),
                                                       memory_.plan.bytes(),
                                                       plan_,
                                                       query_ranges.data(),
                                                       page_ranges.data(),
                                                       /*total_num_rows*/ sequences,
                                                       sequences,
                                                       static_cast<std::uint32_t>(heads),
                                                       static_cast<std::uint32_t>(kv_heads),
                                                       Channels,
                                                       Channels,
                                                       static_cast<std::uint32_t>(page_size),
                                                       /*enable_cuda_graph*/ false,
                                                       sizeof(T),
                                                       /*window_left*/ -1,
                                                       /*fixed_split_size*/ -1,
                                                       /*disable_split_kv*/ false,
                                                       /*num_colocated_ctas*/ 0,
                                                       /*uniform_q_len*/ 0,
                                                       stream));
    if (plan_.cta_tile_q != query_tile) {
      throw std::logic_error("FlashInfer plans for more query heads per KV head than are compiled");
    }
  }

  void attend_async(cudaStream_t stream,
                    pages const& kv,
                    adore::token_view<T const> q,
                    adore::token_view<T> out,
                    float* lse) {
    params of(const_cast<T*>(q.data),
              kv,
              /*maybe_custom_mask*/ nullptr,
              query_ranges_.data(),
              /*maybe_mask_indptr*/ nullptr,
              /*maybe_q_rope_offset*/ nullptr,
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
    of.max_total_num_rows = static_cast<std::uint32_t>(plan_.total_num_rows);
    of.request_indices = memory_.planned(plan_.request_indices_offset);
    of.qo_tile_indices = memory_.planned(plan_.qo_tile_indices_offset);
    of.kv_tile_indices = memory_.planned(plan_.kv_tile_indices_offset);
    of.o_indptr = memory_.planned(plan_.o_indptr_offset);
    of.kv_chunk_size_ptr = memory_.planned(plan_.kv_chunk_size_ptr_offset);
    bool const divided = plan_.split_kv;
    if (divided) of.merge_indptr = memory_.planned(plan_.merge_indptr_offset);
    adore::gpu::check(
        flashinfer::BatchPrefillWithPagedKVCacheDispatched</*SAME_KV_STRIDES*/ true,
                                                           query_tile,
                                                           Channels,
                                                           Channels,
                                                           flashinfer::PosEncodingMode::kNone,
                                                           /*USE_FP16_QK_REDUCTION*/ false,
                                                           flashinfer::MaskMode::kNone,
                                                           plain_attention,
                                                           params>(
            of,
            divided ? memory_.part<T>(plan_.v_offset) : nullptr,
            divided ? memory_.part<float>(plan_.s_offset) : nullptr,
            /*enable_pdl, its default for Hopper*/ true,
            stream));
    to_natural_logarithm_async(stream, lse, static_cast<int>(kv.batch_size) * q.heads);
  }

 private:
  using params = flashinfer::BatchPrefillPagedParams<T, T, T, index_t>;
  static constexpr std::uint32_t query_tile = 16;

  decode_memory memory_;
  adore::gpu::device_buffer<index_t> query_ranges_;  // [sequence + 1]: a query each
  flashinfer::PrefillPlanInfo plan_;
};

}  // namespace flashinfer_example
