// SPDX-License-Identifier: Apache-2.0
// Which policies the device engine can run, and why not the others. Needs no CUDA, so that a
// program can refuse a policy before it does anything.
#pragma once

#include <adore/concepts.hpp>

namespace llama_example::gpu {

/// Why a policy runs on the host only: half a sentence; nullptr if it runs on the device.
template <adore::eviction_policy P>
constexpr char const* why_host_only() {
  if (adore::pools_prompt<P> || adore::budgets_prompt<P>) {
    return "selects from a dense prompt, which the device engine does not have";
  }
  if (adore::recalls_tokens<P>) return "brings tokens back";
  return nullptr;
}

}  // namespace llama_example::gpu
