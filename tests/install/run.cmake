# SPDX-License-Identifier: Apache-2.0
# Builds and runs one of the users in a scratch folder. Given: WAY (installed or subproject),
# SOURCE_DIR and BINARY_DIR of adore, WORK_DIR, GENERATOR, COMPILER, GPU (whether there is adore::gpu).
cmake_minimum_required(VERSION 3.22)

# run(<what> [EXPECT_FAILURE <sentence>] COMMAND <command>...)
function(run what)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "EXPECT_FAILURE" "COMMAND")
  execute_process(COMMAND ${arg_COMMAND} RESULT_VARIABLE status OUTPUT_VARIABLE out
                  ERROR_VARIABLE out)
  if(arg_EXPECT_FAILURE)
    string(REGEX REPLACE "[ \n]+" " " flat "${out}")
    string(FIND "${flat}" "${arg_EXPECT_FAILURE}" found)
    if(status EQUAL 0 OR found EQUAL -1)
      message(FATAL_ERROR "${what}: expected '${arg_EXPECT_FAILURE}', got:\n${out}")
    endif()
  elseif(NOT status EQUAL 0)
    message(FATAL_ERROR "${what} failed:\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
set(build ${WORK_DIR}/build)
set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${COMPILER}
              -S ${CMAKE_CURRENT_LIST_DIR}/${WAY} -B ${build})

if(WAY STREQUAL "installed")
  set(prefix ${WORK_DIR}/prefix)
  run("installing" COMMAND ${CMAKE_COMMAND} --install ${BINARY_DIR} --prefix ${prefix})
  # Nothing but headers and package files; neither llama.cpp nor our own programs.
  file(GLOB_RECURSE strangers RELATIVE ${prefix} ${prefix}/*)
  list(FILTER strangers EXCLUDE REGEX "^(include/adore/.*\\.(hpp|cuh)|share/cmake/adore/.*\\.cmake)$")
  if(strangers)
    message(FATAL_ERROR "these files were installed, too: ${strangers}")
  endif()
  list(APPEND configure -D CMAKE_PREFIX_PATH=${prefix})
  run("a request for version 99" COMMAND ${configure} -D WANTED_VERSION=99 EXPECT_FAILURE
      "compatible with requested version \"99\"")
  list(APPEND configure -U WANTED_*)
  set(gpu -D WANTED_COMPONENT=gpu)
  if(GPU)
    run("a request for the gpu" COMMAND ${configure} ${gpu})
  else()
    run("a request for the gpu" COMMAND ${configure} ${gpu} EXPECT_FAILURE
        "installed without a CUDA compiler")
  endif()
  file(REMOVE_RECURSE ${build})
  run("configuring" COMMAND ${configure})
else()
  run("configuring" COMMAND ${configure} -D ADORE_SOURCE_DIR=${SOURCE_DIR})
endif()
run("building" COMMAND ${CMAKE_COMMAND} --build ${build})
run("running" COMMAND ${build}/user)

if(WAY STREQUAL "subproject")
  # adore must not add to what its parent installs and tests.
  run("installing the parent" COMMAND ${CMAKE_COMMAND} --install ${build} --prefix ${WORK_DIR}/prefix)
  file(GLOB_RECURSE installed ${WORK_DIR}/prefix/*)
  if(installed)
    message(FATAL_ERROR "the parent installs files of adore: ${installed}")
  endif()
  run("listing the parent's tests" COMMAND ${CMAKE_CTEST_COMMAND} --test-dir ${build} -N)
  if(NOT out MATCHES "Total Tests: 0")
    message(FATAL_ERROR "the parent has tests of adore:\n${out}")
  endif()
endif()
