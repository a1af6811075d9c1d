// SPDX-License-Identifier: Apache-2.0
// The attention of one step: over the lanes of each row, or as an engine reports it; in both cases
// its weights wait in slot order for the end of the step.
#pragma once

#include "adore/attention/gqa.hpp"
#include "adore/attention/key_storage.hpp"
#include "adore/attention/pending_weights.hpp"
#include "adore/attention/query_attention.hpp"
#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/slot_order.hpp"
#include "adore/kv_view.hpp"
#include "adore/rebuild/schedule.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace adore {

/// A layer's queries, [token, head, channel], where the result goes, and the K and V that they
/// meet.
template <slot_addressed Keys, slot_addressed Values>
struct attended_layer {
  index_t layer = 0;
  token_view<float const> q;
  token_view<float> out;
  Keys keys;
  Values values;
  float scale = 1.0F;  ///< factor of q.k
};
template <class Keys, class Values>
attended_layer(index_t, token_view<float const>, token_view<float>, Keys, Values, float)
    -> attended_layer<Keys, Values>;

template <eviction_policy P>
class step_attention {
 public:
  step_attention(ledger<P> const& books, cache_options const& options)
      : reduction_(options.reduction),
        mask_(options.rebuild.mask),
        pending_(observes_attention<P> ? books.shape().sequences * books.lanes_per_row() : 0,
                 books.max_new(),
                 books.slots()) {}

  void begin() { pending_.begin(); }

  /// Attends the new tokens of all rows.
  ///
  /// @param rotary  [token of the step]
  template <class Keys, class Values, class Watcher>
  void attend_new(ledger<P>& books,
                  slot_order const& order,
                  key_storage<P>& storage,
                  attended_layer<Keys, Values> const& at,
                  std::span<row_step const> rows,
                  std::span<position_t const> rotary,
                  Watcher& watch) {
    for (row_step const& step : rows) {
      attend_row(books, order, storage, at, step, rotary, watch);
    }
  }

  /// Attends the tokens that are computed again, the first of which is token `first` of the step;
  /// nobody observes them.
  template <class Keys, class Values>
  void attend_rebuilt(ledger<P>& books,
                      slot_order const& order,
                      key_storage<P>& storage,
                      attended_layer<Keys, Values> const& at,
                      std::span<rebuilt_token const> rebuilt,
                      index_t first) {
    index_t token = first;
    for (rebuilt_token const& back : rebuilt) {
      see_rebuilt(books, order, back, rebuilt);
      if (mask_ == rebuild_mask::position_causal) {  // cache_index positions need the row's ranks
        storage.begin_row(at.keys, back.row, [&](index_t head) {
          return lanes_[static_cast<std::size_t>(head)];
        });
      }
      attend_query(books,
                   storage,
                   at,
                   back.row,
                   token++,
                   back.position,
                   [](index_t, std::span<float const>) {});
    }
  }

  /// Takes an engine's probabilities of the new tokens, see `kv_cache::observe`.
  void observe(ledger<P> const& books,
               slot_order const& order,
               index_t layer,
               std::span<row_step const> rows,
               token_view<float const> weights,
               std::span<position_t const> columns) requires observes_attention<P> {
    for (row_step const& step : rows) {
      for (index_t j = 0; j < step.count; ++j) {
        observe_token(books, order, layer, step.row, j, weights, step.first + j, columns);
      }
    }
  }

  /// What `ledger::commit` gives the policy: the accepted queries' weights in one row.
  float const* accepted_weights(P const& policy, index_t lane, index_t accepted) {
    if constexpr (observes_attention<P>) {
      return pending_.combine(
          lane, accepted, [&](index_t later) { return query_weight_of(policy, later); });
    } else {
      return nullptr;
    }
  }

 private:
  template <class Keys, class Values, class Watcher>
  void attend_row(ledger<P>& books,
                  slot_order const& order,
                  key_storage<P>& storage,
                  attended_layer<Keys, Values> const& at,
                  row_step const& step,
                  std::span<position_t const> rotary,
                  Watcher& watch) {
    auto const lane_of = [&](index_t head, std::size_t hidden) {
      index_t const lane = books.lane(step.row, at.layer, head);
      std::size_t const visible = order.slots(lane).size() - hidden;
      return attended_lane<P>{books.slots_of(lane),
                              order.slots(lane).first(visible),
                              order.positions(lane).first(visible)};
    };
    storage.begin_row(at.keys, step.row, [&](index_t head) { return lane_of(head, 0); });
    for (index_t j = 0; j < step.count; ++j) {
      lanes_.clear();
      for (index_t head = 0; head < books.shape().kv_heads; ++head) {
        lanes_.push_back(lane_of(head, static_cast<std::size_t>(step.count - 1 - j)));
      }
      index_t const token = step.first + j;
      attend_query(
          books,
          storage,
          at,
          step.row,
          token,
          rotary[static_cast<std::size_t>(token)],
          [&](index_t head, std::span<float const> weights) {
            attended_lane<P> const& seen = lanes_[static_cast<std::size_t>(head)];
            watch(attention_record{token, step.row, at.layer, head, seen.positions, weights});
            if constexpr (observes_attention<P>) {
              float* const sum = pending_.row(books.lane(step.row, at.layer, head), j);
              for (std::size_t i = 0; i < weights.size(); ++i) {
                sum[seen.slots[i]] += weights[i];
              }
            }
          });
    }
  }
  /// What a rebuilt token sees, into `lanes_`; it is in scope model, one lane for all layers.
  void see_rebuilt(ledger<P>& books,
                   slot_order const& order,
                   rebuilt_token const& back,
                   std::span<rebuilt_token const> all) {
    index_t const lane = books.lane(back.row, 0, 0);
    auto slots = order.slots(lane);
    auto positions = order.positions(lane);
    auto const through = [&](position_t p) {  // how many are not newer
      return static_cast<std::size_t>(std::upper_bound(positions.begin(), positions.end(), p) -
                                      positions.begin());
    };
    if (mask_ == rebuild_mask::position_causal) {
      slots = slots.first(through(back.position));
      positions = positions.first(slots.size());
    } else if (mask_ == rebuild_mask::row_causal) {
      seen_slots_.clear();
      seen_positions_.clear();
      position_t const next = books.next_position(back.row);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        position_t const p = positions[i];
        bool const later =
            p >= next || (p > back.position &&
                          std::any_of(all.begin(), all.end(), [&](rebuilt_token const& one) {
                            return one.row == back.row && one.position == p;
                          }));
        if (later) continue;
        seen_slots_.push_back(slots[i]);
        seen_positions_.push_back(p);
      }
      slots = seen_slots_;
      positions = seen_positions_;
    }
    lanes_.assign(static_cast<std::size_t>(books.shape().kv_heads),
                  {books.slots_of(lane), slots, positions});
  }
  /// ... of a row's j-th new token, the step's `token`.
  void observe_token(ledger<P> const& books,
                     slot_order const& order,
                     index_t layer,
                     index_t row,
                     index_t j,
                     token_view<float const> weights,
                     index_t token,
                     std::span<position_t const> columns) requires observes_attention<P> {
    index_t const kv_heads = books.shape().kv_heads;
    index_t const group = weights.heads / kv_heads;
    reduced_.resize(static_cast<std::size_t>(weights.channels));
    for (index_t head = 0; head < kv_heads; ++head) {
      for (index_t member = 0; member < group; ++member) {
        reduce_head(reduction_,
                    reduced_.data(),
                    weights(token, head * group + member),
                    weights.channels,
                    member,
                    group);
      }
      index_t const lane = books.lane(row, layer, head);
      float* const sum = pending_.row(lane, j);
      if (columns.empty()) {
        for (index_t const slot : order.slots(lane)) {
          if (slot < weights.channels) sum[slot] += reduced_[static_cast<std::size_t>(slot)];
        }
        continue;
      }
      auto const positions = order.positions(lane);
      for (std::size_t column = 0; column < columns.size(); ++column) {
        auto const place = std::lower_bound(positions.begin(), positions.end(), columns[column]);
        if (place == positions.end() || *place != columns[column]) continue;
        sum[order.slots(lane)[static_cast<std::size_t>(place - positions.begin())]] +=
            reduced_[column];
      }
    }
  }
  /// One token's queries in all heads, over `lanes_`, in which it is the last that it sees.
  ///
  /// @param token   its number in the step
  /// @param rotary  its rotary position
  /// @param sink    as in `query_attention`
  template <class Keys, class Values, class Sink>
  void attend_query(ledger<P>& books,
                    key_storage<P>& storage,
                    attended_layer<Keys, Values> const& at,
                    index_t row,
                    index_t token,
                    position_t rotary,
                    Sink&& sink) {
    index_t const group = at.q.heads / books.shape().kv_heads;
    float const* const query =
        storage.turn_query(at.q(token, 0), at.q.heads, at.q.channels, rotary, [&](index_t head) {
          auto const& seen = lanes_[static_cast<std::size_t>(head / group)];
          return static_cast<index_t>(seen.slots.size()) - 1;
        });
    attention_(
        books.policy(),
        at.keys,
        at.values,
        row,
        at.layer,
        lanes_,
        query,
        at.out(token, 0),
        at.q.heads,
        at.scale,
        reduction_,
        [&](index_t head, index_t rank, index_t) { return storage.turned_key(head, rank); },
        sink);
  }

  gqa_reduction reduction_;
  rebuild_mask mask_;
  pending_weights pending_;
  query_attention<P> attention_;
  std::vector<attended_lane<P>> lanes_;  // [kv_head]
  std::vector<index_t> seen_slots_;      // of one rebuilt token, if its mask is not by position
  std::vector<position_t> seen_positions_;
  std::vector<float> reduced_;
};

}  // namespace adore
