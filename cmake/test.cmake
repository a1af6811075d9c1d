# SPDX-License-Identifier: Apache-2.0
# Builds everything in build/ and runs all tests: cmake -P cmake/test.cmake [-- <option of ctest>...]
# Tests of the device need nvcc and a device; without them they are left out with a message.
cmake_minimum_required(VERSION 3.22)
include(${CMAKE_CURRENT_LIST_DIR}/download.cmake)

if(BUILD) # the half that runs beside the download of the model
  build_adore(all -DADORE_TESTS=ON -DADORE_EXAMPLES=ON -DADORE_BENCH=ON
              -DADORE_TEST_MODEL=${model})
  return()
endif()

arguments_after_dashes(given)

build_beside_download(${CMAKE_CURRENT_LIST_FILE})
cmake_host_system_information(RESULT processors QUERY NUMBER_OF_LOGICAL_CORES)
string(TIMESTAMP start "%s")
execute_process(
  COMMAND ${CMAKE_CTEST_COMMAND} --test-dir ${adore_build} --output-on-failure --parallel
          ${processors} ${given}
  RESULT_VARIABLE status)
seconds_since(${start} seconds)
message("tests: ${seconds} s")
if(NOT status EQUAL 0)
  message(FATAL_ERROR "some tests failed, see above")
endif()
