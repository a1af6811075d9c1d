# SPDX-License-Identifier: Apache-2.0
# Flags of our own tests, examples and benchmarks. None of them ever reaches adore::adore.
add_library(adore_warnings INTERFACE)
target_compile_options(
  adore_warnings
  INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wsign-conversion;-Werror>"
    # no -Wpedantic for nvcc: the line markers that it generates trip it; no -Wrestrict: g++ 12 sees an
    # overlap in std::string's operator+ that is none (GCC bug 105651)
    "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;--extended-lambda;-Xcompiler=-Wall,-Wextra,-Werror,-Wno-restrict>"
)

add_library(adore_sanitizers INTERFACE)
if(ADORE_SANITIZE)
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(adore_sanitizers INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
  target_link_options(adore_sanitizers INTERFACE -fsanitize=address,undefined)
endif()

# What every program of ours links.
add_library(adore_own INTERFACE)
target_link_libraries(adore_own INTERFACE adore adore_warnings adore_sanitizers)

# For the engine and what is inlined into it: all its time goes into a few loops over floats.
add_library(adore_native INTERFACE)
target_compile_options(adore_native INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-O3>")
if(ADORE_NATIVE)
  target_compile_options(adore_native INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-march=native>")
endif()
