// SPDX-License-Identifier: Apache-2.0
// Steps whose attention a policy does not observe: it decides by the scores as they are.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/ledger_view.cuh"

#include <bit>
#include <type_traits>

namespace adore::gpu {

/// A policy in a step that it does not observe. Scores stay as they are; all else is as ever, what
/// the policy hides and marks, too. It costs what a policy costs that observes nothing: no weights
/// are computed, no scores written.
///
/// New tokens begin with an empty score and keep it until a step is observed. A policy must protect
/// as many newest tokens as may come until then, or they are the first to go: `h2o` with `recent`
/// at least that many; not `tova`, which keeps what the last query attended.
///
///     attend_async<128>(stream, args, unobserved_step(books.view()), unobserved{policy});
template <eviction_policy P>
struct unobserved : P {
  void observe() const = delete;  // hides that of P
};
template <eviction_policy P>
unobserved(P) -> unobserved<P>;

template <eviction_policy P>
struct checked_device_policy<unobserved<P>>
    : checked_device_policy<P> {  // that it hides is no slip
  using type = unobserved<P>;
};

/// The books of a policy's ledger for a step that it does not observe.
template <eviction_policy P>
ledger_view<unobserved<P>> unobserved_step(ledger_view<P> const& ledger) noexcept {
  static_assert(std::is_same_v<slot_state_of<unobserved<P>>, slot_state_of<P>> &&
                std::is_same_v<lane_state_of<unobserved<P>>, lane_state_of<P>>);
  return std::bit_cast<ledger_view<unobserved<P>>>(ledger);
}

}  // namespace adore::gpu
