# SPDX-License-Identifier: Apache-2.0
# cmake -D WORK_DIR=<scratch folder> -P wrong_tree.cmake
# Writes small header trees and expects of layers.cmake that it names exactly the wrong lines.
cmake_minimum_required(VERSION 3.22)

# Each wrong line is a file, what it includes and a part of the answer.
set(wrong
    "types.hpp|<adore/kv_view.hpp>|types.hpp stands above kv_view.hpp"
    "kv_view.hpp|<adore/policies/h2o.hpp>|kv_view.hpp stands above policies/"
    "policies/tova.hpp|<adore/policies/h2o.hpp>|files of policies/ do not know one another"
    "policies/random.hpp|<adore/stores/host_store.hpp>|policies/ stands above stores/"
    "policies/strided.hpp|<adore/positions/rope.hpp>|policies/ stands above positions/"
    "policies/adaptors/decayed.hpp|<adore/policies/h2o.hpp>|policies/adaptors/ and policies/ do not"
    "policies/tova_2.hpp|<adore/policies/every_policy.hpp>|policies/ stands above policies/every_"
    "controller/gru.hpp|<adore/eviction/rank.hpp>|controller/ stands above eviction/"
    "controller/modes.hpp|<adore/policies/h2o.hpp>|controller/ and policies/ do not know one another"
    "recall/tiers.hpp|<adore/rebuild/order.hpp>|recall/ and rebuild/ do not know one another"
    "eviction/compact.hpp|<adore/attention/gqa.hpp>|eviction/ stands above attention/"
    "stores/host_store.hpp|<adore/kv_cache.hpp>|stores/ stands above kv_cache.hpp"
    "kv_cache.hpp|<adore/gpu.cuh>|a .hpp may not include device code"
    "trace/replay.hpp|<cuda_runtime.h>|a .hpp may not include device code"
    "trace/format.hpp|<adore/unheard_of.hpp>|no layer is known for unheard_of.hpp"
    "eviction/select.hpp|\"rank.hpp\"|write \"adore/...\""
    "utils.hpp|<vector>|no layer is known for this file")
set(right
    "host_device.hpp|<cstdint>"
    "concepts.hpp|<adore/kv_view.hpp>"
    "policies/h2o.hpp|<adore/concepts.hpp>"
    "positions/rope.hpp|<adore/types.hpp>"
    "controller/cell.hpp|<adore/controller/gru.hpp>"
    "eviction/rank.hpp|<adore/eviction/release.hpp>"
    "eviction/release.hpp|<adore/policies/h2o.hpp>"
    "policies/every_policy.hpp|<adore/policies/h2o.hpp>"
    "attention/gqa.hpp|\"adore/eviction/rank.hpp\""
    "adore.hpp|<adore/trace/replay.hpp>"
    "gpu/attention.cuh|<adore/adore.hpp>"
    "gpu.cuh|<adore/gpu/attention.cuh>")

# Writes the files of a list and runs the scan on them.
function(scan files)
  file(REMOVE_RECURSE ${WORK_DIR})
  foreach(entry IN LISTS files)
    string(REPLACE "|" ";" entry "${entry}")
    list(GET entry 0 file)
    list(GET entry 1 included)
    file(WRITE ${WORK_DIR}/adore/${file} "#pragma once\n#include ${included}  // a reason\n")
  endforeach()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -D INCLUDE_DIR=${WORK_DIR} -P ${CMAKE_CURRENT_LIST_DIR}/layers.cmake
    RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE out)
  set(status ${status} PARENT_SCOPE)
  set(out "${out}" PARENT_SCOPE)
endfunction()

scan("${right}")
if(NOT status EQUAL 0)
  message(FATAL_ERROR "the right tree was refused:\n${out}")
endif()

scan("${right};${wrong}")
list(LENGTH wrong count)
if(status EQUAL 0 OR NOT out MATCHES "[^0-9]${count} lines break the layers")
  message(FATAL_ERROR "expected ${count} wrong lines, got:\n${out}")
endif()
foreach(entry IN LISTS wrong)
  string(REPLACE "|" ";" entry "${entry}")
  list(GET entry 0 file)
  list(GET entry 2 why)
  string(REGEX MATCH "adore/${file}:[^\n]*\n[^\n]*" answer "${out}")
  string(FIND "${answer}" "${why}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "no '${why}' for ${file} in:\n${out}")
  endif()
endforeach()
