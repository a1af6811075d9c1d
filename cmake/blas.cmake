# SPDX-License-Identifier: Apache-2.0
# Target adore_blas: OpenBLAS, else any BLAS that comes with cblas.h.
set(BLA_VENDOR OpenBLAS)
find_package(BLAS QUIET)
if(NOT BLAS_FOUND)
  unset(BLA_VENDOR)
  find_package(BLAS QUIET)
endif()
find_path(ADORE_CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas openblas-pthread)
if(NOT BLAS_FOUND OR NOT ADORE_CBLAS_INCLUDE_DIR)
  message(FATAL_ERROR "adore: the example engine needs a BLAS with cblas.h "
                      "(Debian and Ubuntu: libopenblas-dev), or pass -DADORE_LLAMA=OFF")
endif()
add_library(adore_blas INTERFACE)
target_link_libraries(adore_blas INTERFACE BLAS::BLAS)
target_include_directories(adore_blas SYSTEM INTERFACE ${ADORE_CBLAS_INCLUDE_DIR})

# Some reference BLAS keep the C interface in a library of its own.
include(CMakePushCheckState)
include(CheckFunctionExists)
cmake_push_check_state(RESET)
set(CMAKE_REQUIRED_LIBRARIES BLAS::BLAS)
check_function_exists(cblas_sgemm ADORE_BLAS_HAS_CBLAS)
cmake_pop_check_state()
if(NOT ADORE_BLAS_HAS_CBLAS)
  find_library(ADORE_CBLAS_LIBRARY cblas REQUIRED)
  target_link_libraries(adore_blas INTERFACE ${ADORE_CBLAS_LIBRARY})
endif()
