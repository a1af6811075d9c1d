// SPDX-License-Identifier: Apache-2.0
// A program without CUDA.
#include "device.hpp"

#include <stdexcept>

namespace comparison {

std::optional<std::string> why_no_device() {
  return "this program was built without its device half: on a machine without a GPU that needs "
         "-DADORE_GPU_EVERYTHING=ON";
}

std::vector<result> run_on_device(request const&,
                                  llama_example::model const&,
                                  std::vector<std::vector<std::int32_t>> const&,
                                  progress const&) {
  throw std::logic_error(*why_no_device());
}

std::vector<answered> retrieve_on_device(request const&,
                                         llama_example::model const&,
                                         progress const&) {
  throw std::logic_error(*why_no_device());
}

}  // namespace comparison
