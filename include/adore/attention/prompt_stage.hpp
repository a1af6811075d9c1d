// SPDX-License-Identifier: Apache-2.0
// A dense prompt on its way into the lanes: its K and V in a staging area, its attention, and the
// one selection at its end.
#pragma once

#include "adore/attention/key_storage.hpp"
#include "adore/attention/prompt_attention.hpp"
#include "adore/attention/prompt_lane.hpp"
#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/eviction/rank.hpp"
#include "adore/eviction/select.hpp"
#include "adore/kv_view.hpp"
#include "adore/token_scores.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

/// Source: policies.md 0.7 (full_then_select). Scopes layer and kv_head stage one layer at a time
/// and select as soon as it has been attended; scope model stages all layers.
template <eviction_policy P>
class prompt_stage {
 public:
  static std::size_t bytes(index_t tokens, kv_shape const& shape, scope reach) {
    return 2 * sizeof(float) * static_cast<std::size_t>(reach == scope::model ? shape.layers : 1) *
           static_cast<std::size_t>(shape.kv_heads) * static_cast<std::size_t>(tokens) *
           static_cast<std::size_t>(shape.channels);
  }
  /// @throws std::length_error naming the bytes, if they are more than `limit`
  static void require_staging(index_t tokens,
                              kv_shape const& shape,
                              scope reach,
                              std::size_t limit) {
    std::size_t const needed = bytes(tokens, shape, reach);
    if (needed <= limit) return;
    throw std::length_error("adore: a dense prompt of " + std::to_string(tokens) +
                            " tokens needs " + std::to_string(needed) +
                            " bytes of staging; the limit is " + std::to_string(limit) +
                            "; use chunks");
  }

  void begin(ledger<P>& books, index_t row, row_tokens const& tokens) {
    books_ = &books;
    row_ = row;
    count_ = tokens.count;
    given_ = tokens;
    staged_.resize(books.reach() == scope::model ? static_cast<std::size_t>(books.shape().layers)
                                                 : std::size_t{1});
    lanes_.clear();
    if (books.reach() == scope::model || numbers_tokens<P>) begin_lanes(0);
  }

  index_t tokens() const noexcept { return count_; }
  position_t rotary(index_t j) const { return lanes_.front().rotary[static_cast<std::size_t>(j)]; }

  /// What the policy knows of each token, [position], in scope model.
  std::span<slot_state_of<P> const> states() const { return lanes_.front().states; }

  void append(index_t layer, token_view<float const> k, token_view<float const> v) {
    if (books_->reach() != scope::model) begin_lanes(layer);
    staged_layer& staged = stage_of(layer);
    stage(k, staged.keys);
    stage(v, staged.values);
    if constexpr (scores_keys<P>) {
      for (index_t head = 0; head < k.heads; ++head) {
        prompt_lane<P>& lane = lane_of(head);
        for (index_t j = 0; j < count_; ++j) {
          books_->policy().score_key(lane.slots().state(j),
                                     dot(k(j, head), k(j, head), k.channels, 1));
        }
      }
    }
  }

  void attend(index_t layer,
              token_view<float const> q,
              token_view<float> out,
              key_storage<P>& storage,
              gqa_reduction reduction,
              float scale) {
    staged_layer const& staged = stage_of(layer);
    index_t const kv_heads = books_->shape().kv_heads;
    index_t const channels = q.channels;
    std::vector<float> keys(staged.keys.size());
    std::vector<float> queries(static_cast<std::size_t>(count_) *
                               static_cast<std::size_t>(q.heads * channels));
    token_view<float> const turned(queries.data(), count_, q.heads, channels);
    for (index_t j = 0; j < count_; ++j) {
      position_t const rotary = lanes_.front().rotary[static_cast<std::size_t>(j)];
      for (index_t head = 0; head < kv_heads; ++head) {
        std::size_t const place = cell(head, j, channels);
        storage.turn_in_prompt(
            staged.keys.data() + place, keys.data() + place, channels, rotary, j);
      }
      for (index_t head = 0; head < q.heads; ++head) {
        storage.turn_in_prompt(q(j, head), turned(j, head), channels, rotary, j);
      }
    }
    prompt_kv const kv{keys, staged.values, count_, kv_heads, channels};
    std::vector<float> weights(observes_attention<P> ? static_cast<std::size_t>(count_) : 0);
    for (index_t head = 0; head < kv_heads; ++head) {
      prompt_lane<P>& lane = lane_of(head);
      prompt_attention(books_->policy(),
                       kv,
                       lane.slots(),
                       layer,
                       head,
                       token_view<float const>(turned),
                       out,
                       scale,
                       reduction,
                       weights);
      for (std::size_t j = 0; j < weights.size(); ++j) lane.weights[j] += weights[j];
    }
  }

  /// Ends the prompt in the lanes of a layer (scope model: in the row's lane).
  template <class Store>
  void select(ledger<P>& books, key_storage<P>& storage, Store& store) {
    for (prompt_lane<P>& lane : lanes_) observe(lane);
    if constexpr (divides_budget<P>) divide();
    for (prompt_lane<P>& lane : lanes_) {
      std::vector<victim> victims;
      adore::select(books.policy(), lane.slots(), lane.view, rank_of(lane), victims);
      for (victim const& gone : victims) books.log_release(lane.number, -1, gone.position);
      keep(books, lane, storage, store);
    }
  }
  /// A prompt token's K and V go into a slot of the store, in scope model.
  template <class Store>
  void put(position_t token, index_t slot, key_storage<P>& storage, Store& store) {
    put_in(lanes_.front(), token, slot, storage, store);
  }

 private:
  struct staged_layer {
    std::vector<float> keys, values;  // [kv_head, token, channel], keys unturned
  };

  staged_layer& stage_of(index_t layer) {
    return staged_[books_->reach() == scope::model ? static_cast<std::size_t>(layer) : 0];
  }
  prompt_lane<P>& lane_of(index_t kv_head) {
    return lanes_[books_->reach() == scope::kv_head ? static_cast<std::size_t>(kv_head) : 0];
  }
  std::size_t cell(index_t head, index_t token, index_t channels) const {
    return (static_cast<std::size_t>(head) * static_cast<std::size_t>(count_) +
            static_cast<std::size_t>(token)) *
           static_cast<std::size_t>(channels);
  }
  void stage(token_view<float const> from, std::vector<float>& to) const {
    to.resize(static_cast<std::size_t>(from.heads) * static_cast<std::size_t>(count_) *
              static_cast<std::size_t>(from.channels));
    for (index_t head = 0; head < from.heads; ++head) {
      for (index_t j = 0; j < count_; ++j) {
        std::copy_n(from(j, head), from.channels, to.data() + cell(head, j, from.channels));
      }
    }
  }

  void begin_lanes(index_t layer) {
    lanes_.clear();
    for (index_t head = 0; head < books_->lane_heads(); ++head) {
      lanes_.push_back(lane_before_attention(*books_, books_->lane(row_, layer, head), given_));
    }
  }

  void observe(prompt_lane<P>& lane) {
    if constexpr (observes_attention<P>) {
      lane_slots<P> const slots = lane.slots();
      for (index_t j = 0; j < count_; ++j) {
        books_->policy().observe(slots.state(j),
                                 slots.view(j),
                                 lane.view,
                                 lane.weights[static_cast<std::size_t>(j)],
                                 count_);
      }
    }
  }
  lowest_slot rank_of(prompt_lane<P>& lane) {
    return rank(
        books_->policy(), lane.slots(), lane.view, candidates_of(books_->policy(), lane.view));
  }
  void divide() requires divides_budget<P> {
    candidate_range const range = candidates_of(books_->policy(), lanes_.front().view);
    index_t const count = std::max(range.last - range.first + 1, 0);
    std::vector<float> priorities;  // [kv_head, candidate]
    for (prompt_lane<P>& lane : lanes_) {
      lane_slots<P> const slots = lane.slots();
      for (index_t j = range.first; j < range.first + count; ++j) {
        priorities.push_back(priority_of(
            books_->policy(), slots.view(j), lane.view, slots.state(j), *slots.lane_state));
      }
    }
    std::vector<index_t> budgets(lanes_.size(), lanes_.front().view.budget);
    books_->policy().divide_budget(
        priorities.data(), static_cast<index_t>(lanes_.size()), count, budgets.data());
    for (std::size_t head = 0; head < lanes_.size(); ++head) {
      lanes_[head].view.budget = budgets[head];
      // a policy that releases nothing after the prompt keeps its lanes unbounded
      if (books_->budget(lanes_[head].number) != unbounded) {
        books_->assign_budget(lanes_[head].number, budgets[head]);
      }
    }
  }

  /// Puts what is left of a lane into the slots 0, 1, ... of the store and the books.
  template <class Store>
  void keep(ledger<P>& books, prompt_lane<P>& lane, key_storage<P>& storage, Store& store) {
    std::vector<position_t> kept, rotary;
    std::vector<slot_state_of<P>> states;
    for (std::size_t j = 0; j < lane.positions.size(); ++j) {
      if (lane.positions[j] == no_position) continue;
      kept.push_back(lane.positions[j]);
      rotary.push_back(lane.rotary[j]);
      states.push_back(lane.states[j]);
    }
    books.adopt(lane.number, kept, rotary, states);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      put_in(lane, kept[i], static_cast<index_t>(i), storage, store);
    }
  }
  /// A token's K and V go from the staging area into a slot, in all layers and heads of the lane.
  template <class Store>
  void put_in(prompt_lane<P> const& lane,
              position_t token,
              index_t slot,
              key_storage<P>& storage,
              Store& store) {
    lane_extent const extent = books_->extent_of(lane.number);
    slot_view const place{token, lane.rotary[static_cast<std::size_t>(token)]};
    for (index_t l = extent.first_layer; l < extent.end_layer; ++l) {
      staged_layer const& staged = stage_of(l);
      auto const keys = kv_view_of(store.keys(l));
      auto const values = kv_view_of(store.values(l));
      for (index_t head = extent.first_head; head < extent.end_head; ++head) {
        std::size_t const from = cell(head, token, keys.channels);
        storage.put_key(keys, row_, head, slot, place, staged.keys.data() + from);
        storage.put_value(values, row_, head, slot, staged.values.data() + from);
      }
    }
  }

  ledger<P>* books_ = nullptr;
  index_t row_ = 0, count_ = 0;
  row_tokens given_{};
  std::vector<staged_layer> staged_;   // one, or [layer] in scope model
  std::vector<prompt_lane<P>> lanes_;  // of the layer at hand
};

}  // namespace adore
