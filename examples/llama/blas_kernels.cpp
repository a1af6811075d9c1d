// SPDX-License-Identifier: Apache-2.0
#include "llama/blas_kernels.hpp"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

extern "C" char* openblas_get_corename() __attribute__((weak));  // another BLAS has none

namespace llama_example {

namespace {

/// A value of OPENBLAS_CORETYPE, or null if what is loaded will do.
char const* wider_kernels() {
#if defined(__x86_64__)
  if (openblas_get_corename == nullptr) return nullptr;
  if (std::string_view(openblas_get_corename()) != "Prescott") return nullptr;
  if (__builtin_cpu_supports("avx512vl") != 0) return "SkylakeX";
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) return "Haswell";
#endif
  return nullptr;
}

}  // namespace

void restart_for_wider_blas_kernels(char** arguments) {
  char const* const kernels = wider_kernels();
  if (kernels == nullptr || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  setenv("OPENBLAS_CORETYPE", kernels, 1);
  execv("/proc/self/exe", arguments);  // returns only where there is no such file: slow, but right
}

}  // namespace llama_example
