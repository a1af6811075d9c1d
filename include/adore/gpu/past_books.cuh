// SPDX-License-Identifier: Apache-2.0
// What the ledger remembers of a row's released tokens, on its way to another row, and between
// device memory and a snapshot on the host.
#pragma once

#include "adore/concepts.hpp"
#include "adore/eviction/row_snapshot.hpp"
#include "adore/gpu/error.cuh"
#include "adore/gpu/ledger_snapshot.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace adore::gpu::detail {

template <eviction_policy P>
void fork_past_async(cudaStream_t stream, ledger_view<P> const& ledger, index_t from, index_t to) {
  auto const tokens = static_cast<std::size_t>(ledger.past.tokens);
  copy_row_async(stream, ledger.past.released, tokens, from, to);
  copy_row_async(stream, ledger.past.priorities, tokens, from, to);
  if constexpr (remembers_states<P>) copy_row_async(stream, ledger.past_states, tokens, from, to);
  // who has left with the last decision is still in its slot, there as here
  copy_row_async(stream, ledger.past.departures, std::size_t{most_departures}, from, to);
  copy_row_async(stream, ledger.past.departed, 1, from, to);
}

/// Priorities of the tokens of a row that is saved, in scope model.
template <eviction_policy P>
class saved_priorities {
 public:
  /// @pre the books of `saved` are of such a policy
  saved_priorities(P const& policy, row_snapshot const& saved) : policy_(policy) {
    auto const tokens = std::count_if(
        saved.positions.begin(), saved.positions.end(), [](position_t p) { return p >= 0; });
    view_ = {saved.next - 1, static_cast<index_t>(tokens), saved.budgets.front(), 0, 0, saved.seed};
    if constexpr (!std::is_empty_v<lane_state_of<P>>) {
      std::memcpy(&lane_state_, saved.lane_states.data(), sizeof(lane_state_));
    }
  }
  /// @param later  so many steps after the last one, if nothing else changes
  float of(position_t p, slot_state_of<P> const& state, index_t later = 0) const {
    lane_view view = view_;
    view.newest += later;
    return priority_of(policy_, slot_view{p, p}, view, state, lane_state_);
  }

 private:
  P const& policy_;
  lane_view view_{};
  lane_state_of<P> lane_state_{};
};

/// @throws std::invalid_argument if the sequence has grown out of what is remembered
inline void require_remembered(position_t next, index_t tokens) {
  if (next <= tokens) return;
  throw std::invalid_argument("adore: the sequence has " + std::to_string(next) +
                              " tokens, and of released ones the first " + std::to_string(tokens) +
                              " are remembered; make the past of the ledger longer");
}

/// Adds to a row's books which tokens have been released, and what the policy knew of them.
/// Synchronises.
///
/// @throws std::invalid_argument if that does not follow from what is remembered
template <eviction_policy P>
void save_past(cudaStream_t stream,
               ledger_view<P> const& ledger,
               P const& policy,
               index_t row,
               row_snapshot& saved) {
  using slot_state = slot_state_of<P>;
  past_snapshot& past = *saved.past;
  require_remembered(saved.next, ledger.past.tokens);
  if (saved.next == 0) return;
  auto const count = static_cast<std::size_t>(saved.next);
  auto const first = static_cast<std::size_t>(row) * static_cast<std::size_t>(ledger.past.tokens);
  auto const released = read_some<std::uint8_t>(stream, ledger.past.released + first, count);
  auto const priorities = read_some<float>(stream, ledger.past.priorities + first, count);
  std::vector<slot_state> states(count);
  if constexpr (remembers_states<P>) {
    auto const known = read_some<slot_state>(stream, ledger.past_states + first, count);
    for (std::size_t p = 0; p < count; ++p) {
      if (released[p] != 0) states[p] = known[p];
    }
  }
  if constexpr (scores_tokens<P>) {
    for (std::size_t p = 0; p < count; ++p) policy.score(states[p], priorities[p]);
  }
  saved_priorities<P> const priority(policy, saved);
  for (std::size_t i = 0; i < count; ++i) {
    auto const p = static_cast<position_t>(i);
    past.cached.push_back(released[i] != 0 ? std::byte{0} : std::byte{1});
    if (released[i] != 0 &&
        order_key(priority.of(p, states[i]), p) != order_key(priorities[i], p)) {
      throw std::invalid_argument(
          "adore: under this policy the priority of a released token does not follow from its "
          "state, but the device goes by what it was at the release: such a row can be forked, not "
          "saved");
    }
  }
  if constexpr (!std::is_empty_v<slot_state>) {
    append_bytes(past.states, std::span<slot_state const>(states));
  }
}

/// A row's past as it lies in device memory.
template <eviction_policy P>
struct past_image {
  std::vector<std::uint8_t> released;    // [token]
  std::vector<float> priorities;         // [token]
  std::vector<slot_state_of<P>> states;  // [token]
};

/// @pre `saved` is sound, in itself and its past
/// @throws std::invalid_argument if the device, which keeps a number per token, would choose others
///         than the host
template <eviction_policy P>
past_image<P> past_image_of(ledger_view<P> const& ledger,
                            P const& policy,
                            row_snapshot const& saved) {
  using slot_state = slot_state_of<P>;
  past_snapshot const& past = *saved.past;
  require_remembered(saved.next, ledger.past.tokens);
  auto const tokens = static_cast<std::size_t>(ledger.past.tokens);
  auto const count = static_cast<std::size_t>(saved.next);
  past_image<P> image{std::vector<std::uint8_t>(tokens),
                      std::vector<float>(tokens),
                      std::vector<slot_state>(tokens)};
  if constexpr (!std::is_empty_v<slot_state>) {
    std::memcpy(image.states.data(), past.states.data(), past.states.size());
  }
  saved_priorities<P> const priority(policy, saved);
  for (std::size_t i = 0; i < count; ++i) {
    auto const p = static_cast<position_t>(i);
    slot_state const& state = image.states[i];
    image.released[i] = past.cached[i] == std::byte{0} ? 1 : 0;
    if constexpr (scores_tokens<P>) {  // those of kept tokens count once they are released
      image.priorities[i] = priority.of(p, state);
      slot_state again{};
      policy.score(again, image.priorities[i]);
      if (std::memcmp(&again, &state, sizeof(state)) != 0) {
        throw std::invalid_argument(
            "adore: under this policy a released token's state is more than its score, which is "
            "all that the device keeps: only a cache on the host loads the snapshot");
      }
    } else if (image.released[i] != 0) {
      image.priorities[i] = priority.of(p, state);
      if (order_key(image.priorities[i], p) != order_key(priority.of(p, state, 1), p)) {
        throw std::invalid_argument(
            "adore: under this policy the priority of a released token changes with every step, "
            "but not on the device: only a cache on the host loads the snapshot");
      }
    }
  }
  return image;
}

/// Synchronises.
template <eviction_policy P>
void write_past(cudaStream_t stream,
                ledger_view<P> const& ledger,
                index_t row,
                past_image<P> const& image) {
  auto const first = static_cast<std::size_t>(row) * image.released.size();
  write_async(stream, ledger.past.released + first, std::span<std::uint8_t const>(image.released));
  write_async(stream, ledger.past.priorities + first, std::span<float const>(image.priorities));
  if constexpr (remembers_states<P>) {
    write_async(
        stream, ledger.past_states + first, std::span<slot_state_of<P> const>(image.states));
  }
  check(cudaMemsetAsync(ledger.past.departed + row, 0, sizeof(unsigned), stream));
  check(cudaStreamSynchronize(stream));
}

}  // namespace adore::gpu::detail
