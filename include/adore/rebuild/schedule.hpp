// SPDX-License-Identifier: Apache-2.0
// How released tokens come back: how many, how often, seeing what, and whether they may stay.
#pragma once

#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <variant>

namespace adore {

/// All R tokens are computed again in every step and leave with it.
/// Source: ADORE 2.2. Cost: every dense layer runs over R + 1 rows per sequence.
struct every_step {};

/// A rebuilt token stays until a better one needs its place, so that only those that enter are
/// computed. All sequences of the batch share `pool` rows per step, the highest priority first; who
/// finds no row waits, and is counted.
/// Cost: `pool` rows more in every dense layer.
struct on_entry {
  index_t pool = 0;  ///< 0: a quarter of the cache's rows, at least 1
  constexpr index_t pool_for(index_t rows) const noexcept {
    if (pool > 0) return pool;
    return rows < 4 ? 1 : rows / 4;
  }
};

/// All R tokens are computed again every so many steps of their row and stay in between. Rows take
/// turns, so that a batch of them computes about the same in every step.
struct every {
  index_t steps = 8;
};

/// The original K and V come back from a tier in host memory, whichever enter; nothing is computed.
/// What the tier loses, oldest release first, cannot come back.
/// Cost: memory of all released tokens; K and V of those that enter are copied.
struct restore {
  std::size_t limit_bytes = std::numeric_limits<std::size_t>::max();
};

using rebuild_schedule = std::variant<every_step, on_entry, every, restore>;

/// What a query may see. In every mask the step's new tokens see all that is there before them.
enum class rebuild_mask : std::uint8_t {
  position_causal,  ///< what is not newer, as in the dense run (makes m + R >= n exact)
  row_causal,       ///< all that was cached before the step, and rebuilt rows up to its own
  none,             ///< everything (policies.md 13.3: the paper's equation, read literally)
};
constexpr char const* word_of(rebuild_mask mask) noexcept {
  switch (mask) {
    case rebuild_mask::position_causal:
      return "position_causal";
    case rebuild_mask::row_causal:
      return "row_causal";
    case rebuild_mask::none:
      return "none";
  }
  return nullptr;
}

/// Whether tokens that came back compete for a place at the end of the step.
enum class rebuild_admission : std::uint8_t { never, compete };
constexpr char const* word_of(rebuild_admission admit) noexcept {
  switch (admit) {
    case rebuild_admission::never:
      return "never";
    case rebuild_admission::compete:
      return "compete";
  }
  return nullptr;
}

/// What a released token's priority becomes while it is back (policies that observe attention).
enum class rebuilt_score : std::uint8_t {
  frozen,      ///< stays as it was at its release
  accumulate,  ///< goes on from there with the attention that it receives
};
constexpr char const* word_of(rebuilt_score score) noexcept {
  switch (score) {
    case rebuilt_score::frozen:
      return "frozen";
    case rebuilt_score::accumulate:
      return "accumulate";
  }
  return nullptr;
}

/// Source: policies.md 13 and 7; ADORE 2.2, whose text leaves all but `count` open.
struct rebuild_options {
  index_t count = 0;  ///< R: released tokens that are back at the same time, per sequence; 0: none
  rebuild_schedule schedule = every_step{};
  rebuild_mask mask = rebuild_mask::position_causal;
  rebuild_admission admit = rebuild_admission::never;
  rebuilt_score score = rebuilt_score::frozen;
};

/// A token that comes back in this step.
struct rebuilt_token {
  index_t row;
  position_t position;
  index_t id;    ///< vocabulary id, to compute it again
  index_t slot;  ///< of its lane, for its K and V in every layer; -1: the store chooses it
};

}  // namespace adore
