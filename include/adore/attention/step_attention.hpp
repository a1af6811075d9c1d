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

template <eviction_policy P>
class step_attention {
 public:
  step_attention(ledger<P>& books, gqa_reduction reduction)
      : reduction_(reduction),
        pending_(observes_attention<P> ? books.shape().sequences * books.lanes_per_row() : 0,
                 books.max_new(),
                 books.slots()) {}

  void begin() { pending_.begin(); }

  /// Attends the `count` new tokens of one row, the first of which is token `first` of the step.
  ///
  /// @param rotary  [token of the step]
  template <class Keys, class Values, class Watcher>
  void attend_row(ledger<P>& books,
                  slot_order const& order,
                  key_storage<P>& storage,
                  index_t layer,
                  index_t row,
                  index_t count,
                  index_t first,
                  std::span<position_t const> rotary,
                  Keys keys,
                  Values values,
                  token_view<float const> q,
                  token_view<float> out,
                  float scale,
                  Watcher& watch) {
    index_t const kv_heads = books.shape().kv_heads;
    auto const lane_of = [&](index_t head, std::size_t hidden) {
      index_t const lane = books.lane(row, layer, head);
      std::size_t const visible = order.slots(lane).size() - hidden;
      return attended_lane<P>{books.slots_of(lane),
                              order.slots(lane).first(visible),
                              order.positions(lane).first(visible)};
    };
    storage.begin_row(keys, row, [&](index_t head) { return lane_of(head, 0); });
    for (index_t j = 0; j < count; ++j) {
      lanes_.clear();
      for (index_t head = 0; head < kv_heads; ++head) {
        lanes_.push_back(lane_of(head, static_cast<std::size_t>(count - 1 - j)));
      }
      index_t const token = first + j;
      attend_query(books,
                   storage,
                   layer,
                   row,
                   token,
                   rotary[static_cast<std::size_t>(token)],
                   keys,
                   values,
                   q,
                   out,
                   scale,
                   [&](index_t head, std::span<float const> weights) {
                     attended_lane<P> const& seen = lanes_[static_cast<std::size_t>(head)];
                     watch(attention_record{token, row, layer, head, seen.positions, weights});
                     if constexpr (observes_attention<P>) {
                       float* const sum = pending_.row(books.lane(row, layer, head), j);
                       for (std::size_t i = 0; i < weights.size(); ++i) {
                         sum[seen.slots[i]] += weights[i];
                       }
                     }
                   });
    }
  }

  /// Attends a token that is computed again; nobody observes it.
  ///
  /// @param all    the tokens that are computed again in this step
  /// @param token  its number in the step
  template <class Keys, class Values>
  void attend_rebuilt(ledger<P>& books,
                      slot_order const& order,
                      key_storage<P>& storage,
                      index_t layer,
                      rebuilt_token const& back,
                      std::span<rebuilt_token const> all,
                      rebuild_mask mask,
                      index_t token,
                      Keys keys,
                      Values values,
                      token_view<float const> q,
                      token_view<float> out,
                      float scale) {
    index_t const lane = books.lane(back.row, layer, 0);
    auto slots = order.slots(lane);
    auto positions = order.positions(lane);
    auto const through = [&](position_t p) {  // how many are not newer
      return static_cast<std::size_t>(std::upper_bound(positions.begin(), positions.end(), p) -
                                      positions.begin());
    };
    if (mask == rebuild_mask::position_causal) {
      slots = slots.first(through(back.position));
      positions = positions.first(slots.size());
    } else if (mask == rebuild_mask::row_causal) {
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
    index_t const kv_heads = books.shape().kv_heads;
    lanes_.assign(static_cast<std::size_t>(kv_heads), {books.slots_of(lane), slots, positions});
    if (mask == rebuild_mask::position_causal) {  // cache_index positions need the row's ranks
      storage.begin_row(
          keys, back.row, [&](index_t head) { return lanes_[static_cast<std::size_t>(head)]; });
    }
    attend_query(books,
                 storage,
                 layer,
                 back.row,
                 token,
                 back.position,
                 keys,
                 values,
                 q,
                 out,
                 scale,
                 [](index_t, std::span<float const>) {});
  }

  /// Takes an engine's probabilities of one row's j-th new token, see `kv_cache::observe`.
  void observe(ledger<P> const& books,
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
  /// One token's queries in all heads, over `lanes_`, in which it is the last that it sees.
  ///
  /// @param token   its number in the step
  /// @param rotary  its rotary position
  /// @param sink    as in `query_attention`
  template <class Keys, class Values, class Sink>
  void attend_query(ledger<P>& books,
                    key_storage<P>& storage,
                    index_t layer,
                    index_t row,
                    index_t token,
                    position_t rotary,
                    Keys keys,
                    Values values,
                    token_view<float const> q,
                    token_view<float> out,
                    float scale,
                    Sink&& sink) {
    index_t const group = q.heads / books.shape().kv_heads;
    float const* const query =
        storage.turn_query(q(token, 0), q.heads, q.channels, rotary, [&](index_t head) {
          auto const& seen = lanes_[static_cast<std::size_t>(head / group)];
          return static_cast<index_t>(seen.slots.size()) - 1;
        });
    attention_(
        books.policy(),
        keys,
        values,
        row,
        layer,
        lanes_,
        query,
        out(token, 0),
        q.heads,
        scale,
        reduction_,
        [&](index_t head, index_t at, index_t) { return storage.turned_key(head, at); },
        sink);
  }

  gqa_reduction reduction_;
  pending_weights pending_;
  query_attention<P> attention_;
  std::vector<attended_lane<P>> lanes_;  // [kv_head]
  std::vector<index_t> seen_slots_;      // of one rebuilt token, if its mask is not by position
  std::vector<position_t> seen_positions_;
  std::vector<float> reduced_;
};

}  // namespace adore
