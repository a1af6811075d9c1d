# SPDX-License-Identifier: Apache-2.0
# Builds llama.cpp from LLAMA_CPP_DIR: static, for the processor alone, without its programs.
# The last file included, because ninja compiles in this order and our longest sources should start
# first.

# In a function, so that none of these settings reaches our own targets.
function(adore_add_llama_cpp)
  set(BUILD_SHARED_LIBS OFF)
  set(GGML_OPENMP OFF) # its threads spin; two of them on two busy cores stall each other
  set(GGML_NATIVE ${ADORE_NATIVE})
  set(GGML_CCACHE OFF) # would set a launcher for every target of this build
  set(GGML_LLAMAFILE OFF) # a second matrix product, 10 s to compile
  set(GGML_RPC ON) # devices of other machines, two small sources
  set(GGML_CPU_REPACK OFF) # other layouts of quantised weights, made while loading
  set(LLAMA_ALL_WARNINGS OFF)
  foreach(part COMMON TESTS TOOLS EXAMPLES SERVER APP)
    set(LLAMA_BUILD_${part} OFF)
  endforeach()
  set(LLAMA_OPENSSL OFF)
  # Upstream asks git for its version, but in an unpacked archive git would answer for adore's.
  set(GIT_EXECUTABLE /bin/false)
  set(GIT_EXE /bin/false)
  set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
  add_subdirectory("${LLAMA_CPP_DIR}" "${PROJECT_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL)
endfunction()
adore_add_llama_cpp()

foreach(target llama ggml ggml-base ggml-cpu)
  target_compile_options(${target} PRIVATE -w)
  # For those who include them they are system headers: our warnings are for our own code.
  get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
  if(dirs)
    set_target_properties(${target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${dirs}")
  endif()
endforeach()
# Without AMX: GCC 12's _tile_loadconfig names 8 of the 64 bytes that it reads, the stores to the
# others are optimised away, and the first product dies of an illegal instruction.
include(CheckCCompilerFlag)
check_c_compiler_flag(-mno-amx-tile ADORE_COMPILER_KNOWS_AMX)
if(ADORE_COMPILER_KNOWS_AMX)
  target_compile_options(ggml-cpu PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()
if(NOT ADORE_LLAMA_CPP_PINNED)
  return()
endif()

# The rest only saves time in the first build: 80 s of processor time instead of 230 s. What has to
# be fast is ggml's operators and conversions (C, and all of ggml-cpu). The C++ of the others
# (loaders, tokeniser, samplers, the graphs of 150 model families) runs for milliseconds: without
# optimisation it still makes 100,000 tokens a second.
foreach(target llama ggml ggml-base)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O0>)
endforeach()
set(dir ${LLAMA_CPP_DIR}/ggml/src/ggml-cpu) # unused without GGML_CPU_REPACK
set_source_files_properties(
  ${dir}/repack.cpp ${dir}/arch/x86/repack.cpp ${dir}/arch/arm/repack.cpp TARGET_DIRECTORY ggml-cpu
  PROPERTIES COMPILE_OPTIONS -O0)

# Few large sources over one set of parsed headers.
target_precompile_headers(
  llama PRIVATE ${LLAMA_CPP_DIR}/src/models/models.h
  <algorithm> <functional> <map> <regex> <string> <unordered_map> <vector>)
get_target_property(sources llama SOURCES)
list(FILTER sources INCLUDE REGEX "^(llama|unicode).*\\.cpp$")
list(REMOVE_ITEM sources llama-kv-cache-dsv4.cpp) # repeats a name of another source
list(TRANSFORM sources PREPEND ${LLAMA_CPP_DIR}/src/)
set_source_files_properties(
  ${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)
set_target_properties(llama PROPERTIES UNITY_BUILD_BATCH_SIZE 18)
