# SPDX-License-Identifier: Apache-2.0
# llama.cpp, from which the example engine takes model files and tokenisation: an installed package
# (find_package(llama)), else the sources in LLAMA_CPP_DIR, for which llama_cpp_build.cmake is included
# at the end. Either way the targets are llama and ggml.
set(LLAMA_CPP_DIR "" CACHE PATH "Folder of the llama.cpp sources, where no llama package is installed")
option(ADORE_LLAMA_CPP_PINNED "LLAMA_CPP_DIR is the version of cmake/download.cmake: build it quickly"
       OFF)
if(NOT ADORE_LLAMA_CPP_PINNED)
  find_package(llama CONFIG QUIET)
endif()
if(llama_FOUND)
  if(NOT TARGET ggml)
    add_library(ggml ALIAS ggml::ggml)
  endif()
  return()
endif()
if(NOT EXISTS "${LLAMA_CPP_DIR}/include/llama.h")
  message(FATAL_ERROR "adore: ADORE_LLAMA needs llama.cpp; install it, or name its source folder by "
                      "-DLLAMA_CPP_DIR=<folder>, or run cmake -P cmake/compare.cmake, which gets it")
endif()
