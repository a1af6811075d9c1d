// SPDX-License-Identifier: Apache-2.0
// SnapKV: one selection at the end of the prompt, by the attention of the prompt's last queries.
#pragma once

#include "adore/concepts.hpp"
#include "adore/invalid_field.hpp"

namespace adore {

/// How votes of neighbouring tokens are pooled: mean over `kernel` places (zero padding, always
/// divided by `kernel`), or maximum.
enum class vote_pooling : std::uint8_t { none, avg, max };
constexpr char const* word_of(vote_pooling pooling) noexcept {
  switch (pooling) {
    case vote_pooling::none:
      return "none";
    case vote_pooling::avg:
      return "avg";
    case vote_pooling::max:
      return "max";
  }
  return nullptr;
}

/// What happens after the prompt: nothing more is released, or the budget is held as by a sliding
/// window, or as by H2O that goes on from the votes.
enum class after_prompt : std::uint8_t { none, window, h2o };
constexpr char const* word_of(after_prompt then) noexcept {
  switch (then) {
    case after_prompt::none:
      return "none";
    case after_prompt::window:
      return "window";
    case after_prompt::h2o:
      return "h2o";
  }
  return nullptr;
}

/// Whether the query heads of a KV head are reduced before their votes are pooled, or after.
enum class gqa_order : std::uint8_t { reduce_then_pool, pool_then_reduce };
constexpr char const* word_of(gqa_order order) noexcept {
  switch (order) {
    case gqa_order::reduce_then_pool:
      return "reduce_then_pool";
    case gqa_order::pool_then_reduce:
      return "pool_then_reduce";
  }
  return nullptr;
}

/// Keeps of a prompt its last `window` tokens, and the others that these attended most.
///
/// Source:  Li et al., arXiv:2404.14469, section 4; the authors' code (average pooling).
/// Differs: GQA by reduction over the group; `then` = window or h2o is ours.
/// State:   one float per slot, the pooled votes. Acts on a dense prompt only.
struct snapkv {
  index_t size = 512;  ///< tokens kept of the prompt, the window included
  index_t window = 32;
  index_t kernel = 7;
  vote_pooling pool = vote_pooling::avg;
  after_prompt then = after_prompt::none;
  gqa_order order = gqa_order::reduce_then_pool;

  static constexpr char const* name = "snapkv";
  static constexpr char const* budget_field = "size";
  static constexpr scope default_scope = scope::kv_head;

  struct slot_state {
    float votes = 0.0F;
  };

  ADORE_HOST_DEVICE constexpr index_t budget() const noexcept {
    return then == after_prompt::none ? unbounded : size;
  }
  ADORE_HOST_DEVICE constexpr index_t prompt_budget() const noexcept { return size; }
  constexpr index_t nominal_budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr index_t protected_newest(lane_view lane) const noexcept {
    return lane.ends_prompt || then == after_prompt::h2o ? window : 0;
  }
  ADORE_HOST_DEVICE constexpr float query_weight(index_t later) const noexcept {
    return later < window ? 1.0F : 0.0F;
  }
  ADORE_HOST_DEVICE constexpr void observe(
      slot_state& state, slot_view, lane_view lane, float weight, index_t) const noexcept {
    if (lane.ends_prompt || then == after_prompt::h2o) state.votes += weight;
  }
  ADORE_HOST_DEVICE constexpr bool pools_each_head() const noexcept {
    return order == gqa_order::pool_then_reduce;
  }
  ADORE_HOST_DEVICE constexpr float pooled(float const* votes,
                                           index_t count,
                                           index_t which) const noexcept {
    if (pool == vote_pooling::none) return votes[which];
    index_t const first = which - kernel / 2 < 0 ? 0 : which - kernel / 2;
    index_t const last = which + kernel / 2 >= count ? count - 1 : which + kernel / 2;
    float sum = 0.0F;
    float largest = keep_never;
    for (index_t i = first; i <= last; ++i) {
      sum += votes[i];
      largest = votes[i] > largest ? votes[i] : largest;
    }
    return pool == vote_pooling::max ? largest : sum / static_cast<float>(kernel);
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(slot_view,
                                                  lane_view lane,
                                                  slot_state const& state) const noexcept {
    return then == after_prompt::window && !lane.ends_prompt ? 0.0F : state.votes;
  }
  constexpr void validate() const {
    require_field(window >= 1, "snapkv.window", window, "must be at least 1");
    require_field(size > window, "snapkv.size", size, "must be larger than the window");
    require_field(kernel >= 1 && kernel % 2 == 1, "snapkv.kernel", kernel, "must be odd");
  }

  static constexpr snapkv of_budget(index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
    visit("window", self.window);
    visit("kernel", self.kernel);
    visit("pool", self.pool);
    visit("then", self.then);
    visit("order", self.order);
  }
};

static_assert(budgets_prompt<snapkv> && pools_prompt<snapkv> && observes_attention<snapkv>);
static_assert(described<snapkv>);

}  // namespace adore
