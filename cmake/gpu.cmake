# SPDX-License-Identifier: Apache-2.0
# Target adore::gpu: the device headers, for code compiled by nvcc. Without nvcc there is a message
# and no target. ADORE_GPU says which, for the folders that come after.
include(CheckLanguage)
check_language(CUDA)
set(ADORE_GPU OFF)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "adore: no CUDA compiler found, the device parts are left out")
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90) # H100; CMake would take nvcc's default, which is older
endif()
enable_language(CUDA)
find_package(CUDAToolkit 12.4 QUIET)
if(NOT CUDAToolkit_FOUND)
  message(STATUS "adore: no CUDA Toolkit 12.4 or later found, the device parts are left out")
  return()
endif()
set(ADORE_GPU ON)
# Kernels take minutes to compile. Where none of them can run, a part of our own is enough.
execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE no_device OUTPUT_QUIET ERROR_QUIET)
set(has_device OFF)
if(no_device STREQUAL "0")
  set(has_device ON)
endif()
option(ADORE_GPU_EVERYTHING
       "All tests, benchmarks and policies of the device (default: if there is a device)"
       ${has_device})
add_library(adore_gpu INTERFACE)
add_library(adore::gpu ALIAS adore_gpu)
set_target_properties(adore_gpu PROPERTIES EXPORT_NAME gpu)
target_link_libraries(adore_gpu INTERFACE adore CUDA::cudart)
# CMake 3.22 to 3.25 drop C++20 for nvcc without a word, so the flag is written out.
target_compile_options(adore_gpu INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
