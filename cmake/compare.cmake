# SPDX-License-Identifier: Apache-2.0
# Compares all policies on a real model, from nothing:
#   cmake -P cmake/compare.cmake [-- <option of build/bench/compare>...]
# Downloads llama.cpp and the model, builds bench/compare, runs it. Everything lands in build/; a
# second run starts at once.
cmake_minimum_required(VERSION 3.22)
include(${CMAKE_CURRENT_LIST_DIR}/download.cmake)

if(BUILD) # the half that runs beside the download of the model
  set(options "")
  if(NOT EXISTS ${adore_build}/CMakeCache.txt) # a build that has more keeps it
    set(options -DADORE_TESTS=OFF -DADORE_EXAMPLES=OFF -DADORE_BENCH=OFF)
  endif()
  build_adore(compare ${options})
  return()
endif()

# What compare is run with, unless the command line says otherwise.
set(defaults
    --model ${model}
    --text ${llama_cpp_dir}/${sample_text}
    --csv ${adore_build}/comparison.csv
    --json ${adore_build}/comparison.json
    --plot ${adore_build}/comparison)

arguments_after_dashes(given)
set(options "")
while(defaults)
  list(POP_FRONT defaults name value)
  set(same ${given})
  list(FILTER same INCLUDE REGEX "^${name}(=|$)")
  if(NOT same)
    list(APPEND options ${name} ${value})
  endif()
endwhile()

build_beside_download(${CMAKE_CURRENT_LIST_FILE})
string(TIMESTAMP start "%s")
execute_process(COMMAND ${adore_build}/bench/compare ${options} ${given} RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "build/bench/compare failed (${status})")
endif()
seconds_since(${start} seconds)
message("comparison: ${seconds} s")
