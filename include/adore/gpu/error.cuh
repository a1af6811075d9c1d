// SPDX-License-Identifier: Apache-2.0
// CUDA failures as exceptions that say where they were noticed and what CUDA calls them.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <stdexcept>
#include <string>

namespace adore::gpu {

/// A CUDA call failed; `what()` names the place, CUDA's name of the error and its text.
class cuda_error : public std::runtime_error {
 public:
  cuda_error(cudaError_t code, std::source_location where)
      : std::runtime_error(std::string("adore: ") + where.file_name() + ":" +
                           std::to_string(where.line()) + ": " + cudaGetErrorName(code) + ": " +
                           cudaGetErrorString(code)),
        code_(code) {}
  cudaError_t code() const noexcept { return code_; }

 private:
  cudaError_t code_;
};

/// @throws cuda_error unless `code` is cudaSuccess
inline void check(cudaError_t code, std::source_location where = std::source_location::current()) {
  if (code != cudaSuccess) throw cuda_error(code, where);
}

}  // namespace adore::gpu
