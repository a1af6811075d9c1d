// SPDX-License-Identifier: Apache-2.0
// What of a prompt stays whatever the priorities are, and the 32-bit keys in which the rest
// competes. Works on both sides.
#pragma once

#include "adore/host_device.hpp"
#include "adore/order_key.hpp"
#include "adore/types.hpp"

#include <cstdint>

namespace adore::gpu {

inline constexpr std::uint32_t key_of_protected = 0xFFFFFFFFU;  ///< above +infinity
inline constexpr std::uint32_t key_of_no_token = 0;             ///< below NaN
inline constexpr std::uint32_t key_of_nan = 1;
/// What `keep_never` becomes.
inline constexpr std::uint32_t key_of_keep_never =
    static_cast<std::uint32_t>(ordered_keep_never) ^ 0x80000000U;

/// How a prompt of `tokens` tokens falls into the first ones, candidates and the newest ones, if at
/// most `keep` stay. Same rules as `adore::select`: candidates go first, then the newest lose
/// before the first, oldest first.
struct prompt_split {
  index_t tokens, keep;
  index_t first_end;     // the first ones are [0, first_end)
  index_t newest_begin;  // the newest ones are [newest_begin, tokens)

  ADORE_HOST_DEVICE constexpr prompt_split(index_t n, index_t m, index_t first, index_t newest)
      : tokens(n < 0 ? 0 : n),
        keep(m < 0        ? 0
             : m < tokens ? m
                          : tokens),
        first_end(first < tokens ? first : tokens),
        newest_begin(newest < tokens - first_end ? tokens - newest : first_end) {}

  ADORE_HOST_DEVICE constexpr index_t protected_count() const {
    return first_end + tokens - newest_begin;
  }
  /// Whether priorities matter: there are candidates, and room for one at least.
  ADORE_HOST_DEVICE constexpr bool chooses() const { return keep > protected_count(); }
  /// The i-th of the `keep` tokens that stay if there is no choice, ascending.
  ADORE_HOST_DEVICE constexpr position_t protected_at(index_t i) const {
    if (keep <= first_end) return first_end - keep + i;
    return i < first_end ? i : tokens - keep + i;
  }
  /// Whether all of the positions [begin, end) are candidates.
  ADORE_HOST_DEVICE constexpr bool competes(index_t begin, index_t end) const {
    return begin >= first_end && end <= newest_begin;
  }
  /// Key of a candidate. The larger stays.
  static ADORE_HOST_DEVICE constexpr std::uint32_t key(float priority) {
    std::uint32_t const ordered =
        static_cast<std::uint32_t>(ordered_priority(priority)) ^ 0x80000000U;
    return ordered < key_of_nan ? key_of_nan : ordered;
  }
  /// The priority with this key, one above `key_of_nan`.
  static ADORE_HOST_DEVICE constexpr float priority(std::uint32_t key) {
    return priority_of_ordered(static_cast<std::int32_t>(key ^ 0x80000000U));
  }
  /// Key of the token at position i; i >= tokens: none.
  ADORE_HOST_DEVICE constexpr std::uint32_t key(float priority, index_t i) const {
    if (i >= tokens) return key_of_no_token;
    return competes(i, i + 1) ? key(priority) : key_of_protected;
  }
};

}  // namespace adore::gpu
