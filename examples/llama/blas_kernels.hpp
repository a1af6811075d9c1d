// SPDX-License-Identifier: Apache-2.0
// OpenBLAS chooses among its kernels when it is loaded. A processor that is newer than itself it
// takes for one of 2004, with vectors of four floats.
#pragma once

namespace llama_example {

/// Starts the program anew with OPENBLAS_CORETYPE set, if OpenBLAS took those kernels and the
/// processor has wider vectors. For the beginning of main.
///
/// @param arguments  main's
void restart_for_wider_blas_kernels(char** arguments);

}  // namespace llama_example
