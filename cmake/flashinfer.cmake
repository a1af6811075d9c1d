# SPDX-License-Identifier: Apache-2.0
# Target adore_flashinfer: FlashInfer's headers and examples/flashinfer, for our tests and benchmarks.
# Without them there is a message and no target. Compiled with flashinfer-python 0.7.2.post1.
set(ADORE_HAS_FLASHINFER OFF CACHE INTERNAL "") # for cmake/bench_gpu.cmake
set(hint "")
find_program(ADORE_FLASHINFER_PYTHON python3)
if(ADORE_FLASHINFER_PYTHON)
  execute_process(
    COMMAND
      ${ADORE_FLASHINFER_PYTHON} -c
      "import importlib.util as u; print(u.find_spec('flashinfer').submodule_search_locations[0])"
    OUTPUT_VARIABLE hint OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(ADORE_FLASHINFER_INCLUDE flashinfer/page.cuh HINTS "${hint}/data/include"
          DOC "Folder of FlashInfer's headers, data/include of the PyPI package flashinfer-python")
if(NOT ADORE_FLASHINFER_INCLUDE)
  message(STATUS "adore: no FlashInfer found, its tests and benchmark are left out (PyPI package "
                 "flashinfer-python, or -DADORE_FLASHINFER_INCLUDE=<its data/include>)")
  return()
endif()
# 0.6 has other kernels for tensor cores; examples/flashinfer/flashinfer_pages.cuh takes it, too
set(kernels ${ADORE_FLASHINFER_INCLUDE}/flashinfer/attention/prefill.cuh)
set(signature "")
if(EXISTS ${kernels})
  file(STRINGS ${kernels} signature REGEX "SAME_KV_STRIDES" LIMIT_COUNT 1)
endif()
if(NOT signature)
  message(STATUS "adore: the FlashInfer in ${ADORE_FLASHINFER_INCLUDE} is older than 0.7, its tests "
                 "and benchmark are left out")
  return()
endif()
# it is written for a newer CCCL than the CUDA Toolkit's and brings that along
set(cccl ${ADORE_FLASHINFER_INCLUDE}/../cccl/libcudacxx/include)
if(NOT IS_DIRECTORY ${cccl})
  set(cccl "")
endif()
add_library(adore_flashinfer INTERFACE)
# not as a system folder, so that it comes before the toolkit's
target_include_directories(adore_flashinfer INTERFACE ${PROJECT_SOURCE_DIR}/examples ${cccl})
target_include_directories(adore_flashinfer SYSTEM INTERFACE ${ADORE_FLASHINFER_INCLUDE})
# its kernels call std::max
target_compile_options(adore_flashinfer
                       INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
set(ADORE_HAS_FLASHINFER ON CACHE INTERNAL "")
