// SPDX-License-Identifier: Apache-2.0
// Steps whose attention a policy does not observe: it decides by the scores as they are.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/ledger_view.cuh"

#include <bit>
#include <type_traits>

namespace adore::gpu {

/// A policy in a step that it does not observe. Scores stay as they are, those of new tokens begin
/// empty; all else is as ever, what the policy hides and marks, too. It costs what a policy costs
/// that observes nothing: no weights are computed, no scores written.
///
///     attend_async<128>(stream, args, unobserved_step(books.view()), unobserved{policy});
template <eviction_policy P>
struct unobserved : P {
  void observe() const = delete;  // hides that of P
};
template <eviction_policy P>
unobserved(P) -> unobserved<P>;

/// The books of a policy's ledger for a step that it does not observe.
template <eviction_policy P>
ledger_view<unobserved<P>> unobserved_step(ledger_view<P> const& ledger) noexcept {
  static_assert(std::is_same_v<slot_state_of<unobserved<P>>, slot_state_of<P>> &&
                std::is_same_v<lane_state_of<unobserved<P>>, lane_state_of<P>>);
  return std::bit_cast<ledger_view<unobserved<P>>>(ledger);
}

}  // namespace adore::gpu
