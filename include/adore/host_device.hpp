// SPDX-License-Identifier: Apache-2.0
// Marks the functions that run on the host and, when nvcc compiles them, inside kernels too.
// The only macro of the library.
#pragma once

#if __cplusplus < 201709L && !defined(_MSVC_LANG)
#error "adore needs C++20: -std=c++20"
#endif

#if defined(__CUDACC__)
#define ADORE_HOST_DEVICE __host__ __device__
#else
#define ADORE_HOST_DEVICE
#endif
