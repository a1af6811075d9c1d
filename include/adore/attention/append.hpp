// SPDX-License-Identifier: Apache-2.0
// K and V of a step's tokens go into the slots that the plan names.
#pragma once

#include "adore/attention/decode_attention.hpp"
#include "adore/attention/key_storage.hpp"
#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/lane_slots.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/kv_view.hpp"
#include "adore/rebuild/schedule.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <span>

namespace adore {

/// A layer's K and V as the step brings them, [token, kv_head, channel], and where they are stored.
template <slot_addressed Keys, slot_addressed Values>
struct fresh_layer {
  index_t layer = 0;
  token_view<float const> k, v;
  Keys keys;
  Values values;
};
template <class Keys, class Values>
fresh_layer(index_t, token_view<float const>, token_view<float const>, Keys, Values)
    -> fresh_layer<Keys, Values>;

/// The new tokens of all rows; a policy that looks at keys sees them.
template <eviction_policy P, class Keys, class Values>
void append_new(ledger<P>& books,
                key_storage<P>& storage,
                fresh_layer<Keys, Values> const& fresh,
                std::span<row_step const> rows) {
  for (row_step const& step : rows) {
    for (index_t head = 0; head < fresh.k.heads; ++head) {
      index_t const lane = books.lane(step.row, fresh.layer, head);
      lane_slots<P> const slots = books.slots_of(lane);
      for (index_t j = 0; j < step.count; ++j) {
        index_t const slot = books.new_slots(lane)[static_cast<std::size_t>(j)];
        float const* const key = fresh.k(step.first + j, head);
        storage.put_key(fresh.keys, step.row, head, slot, slots.view(slot), key);
        storage.put_value(fresh.values, step.row, head, slot, fresh.v(step.first + j, head));
        if constexpr (scores_keys<P>) {
          books.policy().score_key(slots.state(slot), dot(key, key, fresh.k.channels, 1));
        }
      }
    }
  }
}

/// Tokens that the step computes again, the first of which is its token `first`.
template <eviction_policy P, class Keys, class Values>
void append_rebuilt(key_storage<P>& storage,
                    fresh_layer<Keys, Values> const& fresh,
                    std::span<rebuilt_token const> rebuilt,
                    index_t first) {
  index_t token = first;
  for (rebuilt_token const& back : rebuilt) {
    slot_view const place{back.position, back.position};
    for (index_t head = 0; head < fresh.k.heads; ++head) {
      storage.put_key(fresh.keys, back.row, head, back.slot, place, fresh.k(token, head));
      storage.put_value(fresh.values, back.row, head, back.slot, fresh.v(token, head));
    }
    ++token;
  }
}

}  // namespace adore
