// SPDX-License-Identifier: Apache-2.0
// What the tokens of a step may see where llama.cpp's own mask is wrong: released tokens that come
// back are in scratch sequences, of which llama.cpp thinks that each sees itself alone.
#pragma once

#include <adore/rebuild/schedule.hpp>
#include <adore/types.hpp>

#include <ggml.h>

#include <cstdint>
#include <exception>
#include <span>
#include <utility>
#include <vector>

namespace llama_cpp_example {

/// The mask that an attention node of the graph reads, with or without flash attention; else
/// nullptr.
ggml_tensor* mask_of(ggml_tensor const* node);

/// Overwrites the mask of a step, an input of the graph, before the first node that reads it.
/// Relies on this: the graph is computed up to the last node that the callback wanted, no further,
/// when the callback is asked about the next ones; and an input is where it belongs before its
/// device begins.
class mask_writer {
 public:
  explicit mask_writer(adore::rebuild_mask mask) : mask_(mask) {}

  /// A step with `rebuilt` tokens before the others begins; without any, llama.cpp's mask is right.
  ///
  /// @param cached     [cell] position of each token that is there, `no_position` without one
  /// @param positions  [token] of the batch, the rebuilt ones ascending
  void begin(std::vector<adore::position_t> cached,
             std::span<adore::position_t const> positions,
             adore::index_t rebuilt);
  /// The batch's tokens go to these cells, [token].
  void placed(std::span<std::int64_t const> cells);

  /// The callback is asked about a node: writes the mask that it reads, once per mask, of which
  /// there is one on each device.
  void before(ggml_tensor const* node) noexcept;
  /// Masks written in this step.
  std::size_t written() const noexcept { return written_.size(); }
  /// Throws what was thrown inside the callback, whose caller is C code.
  void rethrow() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  bool sees(std::size_t token, std::size_t cell) const;
  void write(ggml_tensor* mask);

  adore::rebuild_mask mask_;
  adore::index_t rebuilt_ = 0;
  std::vector<adore::position_t> cached_;     // [cell], without the step's own tokens
  std::vector<adore::position_t> positions_;  // [token]
  std::vector<std::int64_t> token_in_;        // [cell], of the step; -1: none
  bool placed_ = false;
  std::vector<ggml_tensor const*> written_;
  std::vector<float> numbers_;       // [token, cell]
  std::vector<ggml_fp16_t> halves_;  // the same, for flash attention
  std::exception_ptr failure_;
};

}  // namespace llama_cpp_example
