// SPDX-License-Identifier: Apache-2.0
// A context of llama.cpp whose cache a policy keeps small: feed tokens, get logits.
#pragma once

#include "llama/token_scorer.hpp"
#include "llama_cpp/attention_reader.hpp"
#include "llama_cpp/llama_objects.hpp"
#include "llama_cpp/mask_writer.hpp"
#include "llama_cpp/retention.hpp"
#include "llama_cpp/step_times.hpp"
#include <adore/rebuild/schedule.hpp>
#include <adore/types.hpp>

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace llama_cpp_example {

/// llama.cpp makes contexts of whole granules, and a step costs as much as its last granule of
/// cells is long; so a budget that is no multiple wastes what it pays for.
inline constexpr adore::index_t cell_granule = 256;
constexpr adore::index_t whole_granules(adore::index_t cells) noexcept {
  return (cells + cell_granule - 1) / cell_granule * cell_granule;
}

struct decoder_options {
  std::string policy;                                 ///< empty: llama.cpp alone, for comparison
  std::optional<adore::index_t> budget{};             ///< m, tokens kept after a step
  adore::rebuild_options rebuild{};                   ///< released tokens that come back
  llama_example::token_scorer* scorer = nullptr;      ///< for a policy that takes scores
  adore::index_t cells = cell_granule;                ///< at least budget + chunk + rebuild.count
  adore::index_t chunk = 1;                           ///< most tokens that a step takes
  adore::index_t scores_every = 1;                    ///< weights are read at each n-th step
  std::optional<adore::position_scheme> positions{};  ///< default: the policy's
  adore::index_t shift_every = 64;  ///< cache_index: released tokens between two shifts
  std::uint64_t seed = 0;           ///< for policies that draw
  llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO;
  ggml_type cache_type = GGML_TYPE_F16;
  int threads = 1;
};

class decoder {
 public:
  /// @throws std::invalid_argument for options that contradict each other, naming them
  /// @throws std::runtime_error if the model cannot serve the policy, or there is no memory
  decoder(llama_model* model, decoder_options const& options);
  ~decoder() = default;
  decoder(decoder const&) = delete;  // the context points here
  decoder& operator=(decoder const&) = delete;
  decoder(decoder&&) = delete;
  decoder& operator=(decoder&&) = delete;

  /// Feeds tokens in chunks; returns the logits of the last one, [vocabulary].
  ///
  /// @param each  called with the number of each token and its logits
  std::span<float const> feed(
      std::span<llama_token const> tokens,
      std::function<void(std::size_t, std::span<float const>)> const& each = {});

  llama_context* context() noexcept { return context_.get(); }
  adore::position_scheme positions() const noexcept { return positions_; }
  std::vector<adore::position_t> kept() const;
  std::size_t released() const noexcept { return released_; }
  /// Tokens that were decoded again, in all steps together.
  std::size_t rebuilt() const noexcept { return rebuilt_; }
  std::size_t key_value_bytes() const noexcept {
    return bytes_per_cell_ * llama_n_ctx(context_.get());
  }
  std::size_t bytes_per_cell() const noexcept { return bytes_per_cell_; }
  long shifts() const noexcept { return shifts_; }
  step_times plain_steps() const noexcept { return plain_steps_; }
  step_times shifting_steps() const noexcept { return shifting_steps_; }
  /// Masks that the last step overwrote: one per device that has layers, if tokens came back.
  std::size_t masks() const noexcept { return mask_.written(); }
  /// Shows weights that are read, [token, 1, cell], before the policy sees them.
  void watch(attention_reader::weights_function sees) { watcher_ = std::move(sees); }

 private:
  static bool on_node(ggml_tensor* node, bool asks, void* engine) noexcept;
  bool look_at(ggml_tensor* node, bool asks) noexcept;
  llama_context_params parameters() const;
  void step(std::span<llama_token const> tokens, bool all_logits);
  void fill_batch(std::span<llama_token const> tokens, bool all_logits);
  /// Weights are read, or masks written, by llama.cpp's callback, which says where tokens are too.
  bool sees_cells() const noexcept { return observes_ || options_.rebuild.count > 0; }
  void place(std::span<std::int64_t const> cells);
  bool close_gaps();
  std::span<float const> logits(int token);

  decoder_options options_;
  adore::position_scheme positions_ = adore::position_scheme::original;
  adore::index_t layers_;
  std::size_t vocabulary_;
  bool observes_ = false;
  attention_reader reader_;
  mask_writer mask_;
  attention_reader::weights_function watcher_;
  context_ptr context_;
  std::unique_ptr<retention> cache_;  // none: llama.cpp alone
  owned_batch batch_;
  std::int32_t first_new_ = 0;  // in the batch, behind those that come back
  std::size_t bytes_per_cell_ = 0, released_ = 0, rebuilt_ = 0;
  long steps_ = 0, shifts_ = 0;
  double looking_ = 0.0;  // seconds in the callback, in this step
  step_times plain_steps_, shifting_steps_;
};

}  // namespace llama_cpp_example
