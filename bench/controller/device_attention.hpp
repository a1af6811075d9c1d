// SPDX-License-Identifier: Apache-2.0
// Full attention of the device's example engine, shown to the labels. Defined in
// device_attention.cu, or in no_device.cpp where the program has none.
#pragma once

#include "host_attention.hpp"
#include "labels.hpp"
#include "llama/model.hpp"

#include <memory>
#include <optional>
#include <span>
#include <string>

namespace controller_labels {

/// Why there is no device here; nothing if there is.
std::optional<std::string> why_no_device();

/// The model on the device.
class device_attention {
 public:
  /// @throws std::runtime_error if there is no device
  explicit device_attention(llama_example::model const& weights);
  ~device_attention();
  device_attention(device_attention const&) = delete;
  device_attention& operator=(device_attention const&) = delete;

  /// As the host's `show_attention`: the same labels, up to rounding of the attention.
  void show(label_options const& options, std::span<labelled_crop> crops);

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace controller_labels
