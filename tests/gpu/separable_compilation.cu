// SPDX-License-Identifier: Apache-2.0
// The device headers in a project with relocatable device code (nvcc -rdc=true), where a function
// that is not inlined must not need more registers than the kernels that call it. Compiling is the
// test.
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decode_attention.cuh>
#include <adore/kv_view.hpp>
#include <adore/policies/h2o.hpp>

#include <cuda_bf16.h>

namespace adore::gpu {

using element = __nv_bfloat16;
template void attend_async<64, 4>(cudaStream_t,
                                  attend_args<element, kv_view<element>> const&,
                                  ledger_view<h2o> const&,
                                  h2o const&);
template void decide_async(
    cudaStream_t, ledger_view<h2o> const&, h2o const&, index_t, decide_args const&);

}  // namespace adore::gpu
