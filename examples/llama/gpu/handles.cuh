// SPDX-License-Identifier: Apache-2.0
// CUDA's handles with owners, and cuBLAS failures as exceptions.
#pragma once

#include <adore/gpu/error.cuh>

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>

namespace llama_example::gpu {

using adore::gpu::check;

/// @throws std::runtime_error with the place and cuBLAS's text
inline void check(cublasStatus_t status,
                  std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                           ": cuBLAS: " + cublasGetStatusString(status));
}

struct handle_deleter {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  void operator()(cublasHandle_t handle) const { cublasDestroy(handle); }
};
using stream_owner = std::unique_ptr<CUstream_st, handle_deleter>;
using event_owner = std::unique_ptr<CUevent_st, handle_deleter>;
using graph_owner = std::unique_ptr<CUgraphExec_st, handle_deleter>;
using cublas_owner = std::unique_ptr<cublasContext, handle_deleter>;

inline stream_owner make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream_owner(stream);
}
/// @param flags  cudaEventDisableTiming for events that only order work, cudaEventDefault to time
inline event_owner make_event(unsigned flags) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, flags));
  return event_owner(event);
}

}  // namespace llama_example::gpu
