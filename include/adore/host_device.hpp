// SPDX-License-Identifier: Apache-2.0
// Marks the functions that run on the host and, when nvcc compiles them, inside kernels too.
// The only conditional, and the only macro, of the library.
#pragma once

#if defined(__CUDACC__)
#define ADORE_HOST_DEVICE __host__ __device__
#else
#define ADORE_HOST_DEVICE
#endif
