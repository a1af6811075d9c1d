// SPDX-License-Identifier: Apache-2.0
// A program without CUDA.
#include "device_attention.hpp"

#include <stdexcept>

namespace controller_labels {

struct device_attention::state {};

std::optional<std::string> why_no_device() {
  return "this program was built without its device half: on a machine without a GPU that needs "
         "-DADORE_GPU_EVERYTHING=ON";
}

device_attention::device_attention(llama_example::model const&) {
  throw std::runtime_error(*why_no_device());
}
device_attention::~device_attention() = default;
void device_attention::show(label_options const&, std::span<labelled_crop>) {}

}  // namespace controller_labels
