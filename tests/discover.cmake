# SPDX-License-Identifier: Apache-2.0
# cmake -D PROGRAM=<doctest program> -D FILE=<CTest file to write> -D LABEL=<label or empty>
#       -D DATA=<ADORE_TEST_DATA> -D MODEL=<ADORE_TEST_MODEL> -P discover.cmake
# One CTest per test case. (doctest's own script does not know cases with a semicolon in their name,
# and of a comma only its later versions do.)
cmake_minimum_required(VERSION 3.22)

execute_process(COMMAND ${PROGRAM} --list-test-cases --no-intro=true RESULT_VARIABLE status
                OUTPUT_VARIABLE out)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} --list-test-cases failed: ${status}\n${out}")
endif()

# These mean something in a CMake list, so they travel as letters that no name has.
string(ASCII 1 semicolon)
string(ASCII 2 open)
string(ASCII 3 close)
string(REPLACE ";" "${semicolon}" out "${out}")
string(REPLACE "[" "${open}" out "${out}")
string(REPLACE "]" "${close}" out "${out}")
string(REPLACE "\n" ";" cases "${out}")
list(FILTER cases EXCLUDE REGEX "^(${open}doctest${close}.*|===.*|)$")
list(REMOVE_DUPLICATES cases)

# The last variable of the environment: float32 products of llama.cpp's CUDA backend are to be what
# they say (tests/llama_cpp/gpus.hpp).
set(script "")
foreach(case IN LISTS cases)
  set(labels "${LABEL}")
  if(case MATCHES "GPU") # by its name a case says that it needs one
    list(APPEND labels gpu)
  endif()
  string(REPLACE "${semicolon}" ";" case "${case}")
  string(REPLACE "${open}" "[" case "${case}")
  string(REPLACE "${close}" "]" case "${case}")
  # In a filter "?" is any letter, and a comma would begin the next filter. A filter that finds
  # nothing must not pass.
  string(REGEX REPLACE "[,\\\\]" "?" filter "${case}")
  string(APPEND script "add_test([==[${case}]==] [==[${PROGRAM}]==] [==[--test-case=${filter}]==])
set_tests_properties([==[${case}]==] PROPERTIES
  ENVIRONMENT [==[ADORE_TEST_DATA=${DATA};ADORE_TEST_MODEL=${MODEL};NVIDIA_TF32_OVERRIDE=0]==]
  SKIP_REGULAR_EXPRESSION [==[adore test skipped: ]==]
  FAIL_REGULAR_EXPRESSION [==[test cases: +0 ]==]
  SKIP_RETURN_CODE 77
  LABELS [==[${labels}]==])
")
endforeach()
file(WRITE ${FILE} "${script}")
