# SPDX-License-Identifier: Apache-2.0
# cmake -D INCLUDE_DIR=<folder that holds adore/> -P layers.cmake
# Prints each #include line that breaks the layers below and fails if there is one.
cmake_minimum_required(VERSION 3.22)
get_filename_component(INCLUDE_DIR ${INCLUDE_DIR} ABSOLUTE)

# One row a layer; an entry may include what stands in the rows above and, in its own row, to its
# left. In a row of strangers nothing but the rows above. A name with a slash at its end is a folder.
# Decisions know nothing of one another; stages share only the ledger, which is in eviction/.
set(rows
    "host_device.hpp"
    "types.hpp invalid_field.hpp order_key.hpp philox.hpp kv_view.hpp"
    "policy_state.hpp policy_abilities.hpp concepts.hpp checked_policy.hpp policies/adaptors/forwards.hpp"
    "strangers: policies/ policies/adaptors/ controller/ positions/"
    "policies/every_policy.hpp policy_text.hpp"
    "eviction/ rebuild/schedule.hpp rebuild_text.hpp cache_options.hpp token_scores.hpp"
    "strangers: rebuild/ recall/ attention/"
    "stores/"
    "step_progress.hpp step_tokens.hpp cache_set_up.hpp cached_rows.hpp dense_prompt.hpp prompt_entry.hpp kv_cache.hpp any_cache.hpp"
    "trace/"
    "adore.hpp"
    "testing/"
    "gpu/"
    "gpu.cuh")
# A policy or an adaptor does not even know the other files of its folder.
set(folders_of_strangers policies/ policies/adaptors/)

set(entries "")
set(rows_of_strangers "")
set(row 0)
foreach(names IN LISTS rows)
  separate_arguments(names)
  foreach(name IN LISTS names)
    if(name STREQUAL "strangers:")
      list(APPEND rows_of_strangers ${row})
      continue()
    endif()
    list(APPEND entries ${name})
    set(row_of_${name} ${row})
  endforeach()
  math(EXPR row "${row} + 1")
endforeach()

# The entry that a path below adore/ belongs to: the file itself or the nearest listed folder.
function(find_entry path result)
  set(name ${path})
  while(NOT name IN_LIST entries AND name MATCHES "/")
    string(REGEX REPLACE "^(.*/)?[^/]+/?$" "\\1" name ${name})
  endwhile()
  if(NOT name IN_LIST entries)
    set(name "")
  endif()
  set(${result} "${name}" PARENT_SCOPE)
endfunction()

# Why `from` may not include `to` (paths below adore/); empty if it may.
function(why_not from to result)
  find_entry(${from} from_entry)
  find_entry(${to} to_entry)
  set(why "")
  if(NOT to_entry)
    set(why "no layer is known for ${to}")
  else()
    set(from_row ${row_of_${from_entry}})
    set(to_row ${row_of_${to_entry}})
    list(FIND entries ${from_entry} from_place)
    list(FIND entries ${to_entry} to_place)
    if(from_entry STREQUAL to_entry)
      if(from_entry IN_LIST folders_of_strangers)
        set(why "files of ${from_entry} do not know one another")
      endif()
    elseif(to_row GREATER from_row OR (to_row EQUAL from_row AND to_place GREATER from_place))
      set(why "${from_entry} stands above ${to_entry}")
    elseif(to_row EQUAL from_row AND from_row IN_LIST rows_of_strangers)
      set(why "${from_entry} and ${to_entry} do not know one another")
    endif()
  endif()
  set(${result} "${why}" PARENT_SCOPE)
endfunction()

set(cuda_headers "^(cuda|cub/|thrust/|nv/|cooperative_groups|mma\\.h|cublas|.*\\.cuh$|adore/gpu/)")
set(problems 0)
macro(report file text why)
  message("adore/${file}: ${text}\n    ${why}")
  math(EXPR problems "${problems} + 1")
endmacro()

file(GLOB_RECURSE files RELATIVE ${INCLUDE_DIR}/adore ${INCLUDE_DIR}/adore/*.hpp
     ${INCLUDE_DIR}/adore/*.cuh)
if(NOT files)
  message(FATAL_ERROR "no headers below ${INCLUDE_DIR}/adore")
endif()
foreach(file IN LISTS files)
  find_entry(${file} entry)
  if(NOT entry)
    report(${file} "" "no layer is known for this file")
    continue()
  endif()
  file(STRINGS ${INCLUDE_DIR}/adore/${file} lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "include[ \t]*([<\"])([^>\"]+)[>\"]")
      report(${file} "${line}" "a name that is not written out")
      continue()
    endif()
    set(quote "${CMAKE_MATCH_1}")
    set(name "${CMAKE_MATCH_2}")
    if(file MATCHES "\\.hpp$" AND name MATCHES "${cuda_headers}")
      report(${file} "${line}" "a .hpp may not include device code")
    elseif(quote STREQUAL "\"" AND NOT name MATCHES "^adore/")
      report(${file} "${line}" "write \"adore/...\"")
    elseif(name MATCHES "^adore/(.+)")
      why_not(${file} ${CMAKE_MATCH_1} why)
      if(why)
        report(${file} "${line}" "${why}")
      endif()
    endif()
  endforeach()
endforeach()

list(LENGTH files count)
if(problems)
  message(FATAL_ERROR "${problems} lines break the layers in ${count} headers")
endif()
message(STATUS "${count} headers keep the layers")
