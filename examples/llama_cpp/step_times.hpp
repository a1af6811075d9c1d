// SPDX-License-Identifier: Apache-2.0
// Where the time of steps goes: llama.cpp, its callback, the policy.
#pragma once

#include <chrono>

namespace llama_cpp_example {

using moment = std::chrono::steady_clock::time_point;

inline double seconds_since(moment begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Steps of one token and how long they took, in seconds of all together. Steps of several are left
/// out: their time per token says nothing of generating.
struct step_times {
  long count = 0;
  double seconds = 0.0;   ///< of which
  double in_llama = 0.0;  ///< llama_decode and the wait for its logits, without the callback
  /// Copies and sums weights, hands them to the policy, writes masks; on an RPC server, whose work
  /// llama.cpp does not wait for, it waits for the weights too.
  double in_callback = 0.0;
  /// Decisions, scores, releases, books: what is left.
  double in_policy() const noexcept { return seconds - in_llama - in_callback; }
  double mean() const noexcept { return count == 0 ? 0.0 : seconds / static_cast<double>(count); }

  friend step_times operator+(step_times const& a, step_times const& b) noexcept {
    return {a.count + b.count,
            a.seconds + b.seconds,
            a.in_llama + b.in_llama,
            a.in_callback + b.in_callback};
  }
};

}  // namespace llama_cpp_example
