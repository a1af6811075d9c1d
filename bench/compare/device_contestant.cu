// SPDX-License-Identifier: Apache-2.0
#include "device_contestant.cuh"
#include "llama/controller_file.hpp"

#include <optional>
#include <stdexcept>
#include <string>

namespace comparison {

std::unique_ptr<llama_example::gpu::device_cache<float>> make_device_contestant(
    contestant const& entry,
    request const& asked,
    llama_example::gpu::device_model<float> const& weights,
    adore::index_t rows,
    adore::index_t tokens,
    bool exports_weights) {
  llama_example::model const& m = weights.numbers();
  std::optional<adore::controller_weights> controller;
  if (!entry.controller.empty()) {
    controller = llama_example::read_controller(entry.controller);
    if (controller->inputs != m.width) {
      throw std::invalid_argument(entry.controller + " reads embeddings of " +
                                  std::to_string(controller->inputs) +
                                  " channels, the model's have " + std::to_string(m.width));
    }
  }
  llama_example::gpu::device_cache_options options;
  options.reach = asked.reach;
  options.exports_weights = exports_weights;
  options.controller = controller ? &*controller : nullptr;
  options.embeddings = weights.embedding().data.data();
  options.vocabulary = m.vocabulary;
  options.rebuild = entry.rebuild;
  return llama_example::gpu::make_device_cache<float>(entry.policy,
                                                      {.rows = rows,
                                                       .layers = m.layers,
                                                       .kv_heads = m.kv_heads,
                                                       .channels = m.channels,
                                                       .tokens = tokens,
                                                       .budget = entry.budget},
                                                      options);
}

}  // namespace comparison
