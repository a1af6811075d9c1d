// SPDX-License-Identifier: Apache-2.0
// A policy with what may follow it in text: "policy@controller.safetensors+rebuild(count=8)".
#pragma once

#include <adore/rebuild/schedule.hpp>

#include <string>

namespace llama_example {

struct policy_choice {
  std::string policy;      ///< name or name(field=value,...)
  std::string controller;  ///< file, for a policy that takes scores; else empty
  adore::rebuild_options rebuild;
};

/// @throws std::invalid_argument as `adore::policy_of` and `adore::rebuild_of`; or if a policy that
///         takes scores has no controller, or another has one
policy_choice read_policy_choice(std::string const& text);

}  // namespace llama_example
