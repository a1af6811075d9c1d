# SPDX-License-Identifier: Apache-2.0
# cmake -D SOURCE=<file> -P expect_error.cmake -- <compiler command>
# Passes if the command refuses the source with every sentence in its `// expected-error:` lines.
cmake_minimum_required(VERSION 3.22)

set(command "")
set(after_dashes OFF)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(after_dashes)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(after_dashes ON)
  endif()
endforeach()

# Compilers break lines where they like, so all white space counts as one space.
function(flatten text result)
  string(REGEX REPLACE "[ \t\r\n]+" " " text "${text}")
  string(STRIP "${text}" text)
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

file(STRINGS ${SOURCE} sentences REGEX "// expected-error:")
if(NOT sentences)
  message(FATAL_ERROR "${SOURCE} has no line '// expected-error: <sentence>'")
endif()
set(ENV{LC_ALL} C) # plain quotes in messages
execute_process(COMMAND ${command} ${SOURCE} RESULT_VARIABLE status OUTPUT_VARIABLE out
                ERROR_VARIABLE out)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles, but must not")
endif()
flatten("${out}" flat)
foreach(sentence IN LISTS sentences)
  string(REGEX REPLACE ".*// expected-error:" "" sentence "${sentence}")
  flatten("${sentence}" sentence)
  string(FIND "${flat}" "${sentence}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "expected: ${sentence}\nbut the compiler said:\n${out}")
  endif()
endforeach()
