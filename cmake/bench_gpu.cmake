# SPDX-License-Identifier: Apache-2.0
# Benchmarks of the device, beside PyTorch and FlashInfer if they are there:
#   cmake [-D ADORE_FLASHINFER_INCLUDE=<folder>] [-D "SHAPES=64x32/8x1024;..."]
#         -P cmake/bench_gpu.cmake
# Shapes are sequences x query heads/KV heads x slots; without any, those of attention_shapes.cuh.
# Builds in build/, writes build/bench_gpu/{attention.json,stages.json,flashinfer.json,pytorch.csv,
# table.md,*.png,*.svg}.
cmake_minimum_required(VERSION 3.22)
get_filename_component(root ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(build ${root}/build)
set(results ${build}/bench_gpu)
file(MAKE_DIRECTORY ${results})

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${status}): ${command}")
  endif()
endfunction()

set(options "")
if(ADORE_FLASHINFER_INCLUDE)
  get_filename_component(folder ${ADORE_FLASHINFER_INCLUDE} ABSOLUTE)
  set(options -DADORE_FLASHINFER_INCLUDE:PATH=${folder})
endif()
run(${CMAKE_COMMAND} -S ${root} -B ${build} -DADORE_BENCH=ON -DADORE_CUDA=ON
    -DADORE_GPU_EVERYTHING=ON ${options})
set(names attention stages)
file(STRINGS ${build}/CMakeCache.txt flashinfer REGEX "^ADORE_HAS_FLASHINFER:INTERNAL=ON")
if(flashinfer)
  list(APPEND names flashinfer)
else()
  message("no FlashInfer here: the table goes without it")
  file(REMOVE ${results}/flashinfer.json)
endif()
set(programs ${names})
list(TRANSFORM programs APPEND _bench)
run(${CMAKE_COMMAND} --build ${build} --target ${programs})
foreach(name IN LISTS names)
  set(shapes ${SHAPES})
  if(name STREQUAL "stages")
    set(shapes "")
  endif()
  run(${build}/bench/${name}_bench --benchmark_out=${results}/${name}.json
      --benchmark_out_format=json ${shapes})
endforeach()
execute_process(COMMAND python3 -c "import torch; assert torch.cuda.is_available()"
                RESULT_VARIABLE no_torch OUTPUT_QUIET ERROR_QUIET)
if(no_torch)
  message("no PyTorch with a device here: the table goes without it")
  file(REMOVE ${results}/pytorch.csv)
else()
  execute_process(COMMAND python3 ${root}/bench/gpu/pytorch_attention.py ${SHAPES}
                  OUTPUT_FILE ${results}/pytorch.csv ERROR_VARIABLE complaint
                  RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(WARNING "pytorch_attention.py failed (${status}): the table goes without what it had not "
                    "measured by then. It said:\n${complaint}")
  endif()
endif()
run(python3 ${root}/bench/gpu/table.py ${results})
