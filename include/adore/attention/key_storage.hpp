// SPDX-License-Identifier: Apache-2.0
// In which rotation keys lie in the store, and how a query sees them, for both position schemes.
#pragma once

#include "adore/attention/query_attention.hpp"
#include "adore/concepts.hpp"
#include "adore/kv_view.hpp"
#include "adore/positions/rope.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace adore {

/// Original positions: keys lie turned by their position and are never touched again.
/// Cache-index positions: keys lie unturned and each query turns them by their rank; for sinks and
/// window it is enough to turn the sinks, since only distances count (policies.md 0.6): everything
/// else lies turned by its position. A key is always turned from the unturned one: turning a key
/// again and again would add up rounding errors.
template <eviction_policy P>
class key_storage {
 public:
  /// @throws std::invalid_argument if cache_index is asked for without a rotation
  key_storage(P const& policy, position_scheme scheme, std::optional<rope> rotation, index_t slots)
      : rotation_(std::move(rotation)), turns_(turn_places) {
    if (scheme == position_scheme::original) {
      mode_ = rotation_ ? mode::turned : mode::as_given;
      return;
    }
    if (!rotation_) {
      throw std::invalid_argument(
          "adore: positions = cache_index: the cache must turn the keys itself, since their "
          "positions change while they are cached; give it `rotation`, or ask for original "
          "positions");
    }
    mode_ = mode::by_rank;
    if constexpr (keeps_sinks_and_window<P>) {
      mode_ = mode::sinks_shifted;
      if constexpr (protects_first<P>) sinks_ = policy.protected_first(lane_view{});
    } else {
      for (index_t rank = 0; rank < slots; ++rank) ranks_.push_back(rotation_->at(rank));
    }
    (void)policy;
  }

  template <slot_addressed View>
  void put_key(
      View keys, index_t row, index_t head, index_t slot, slot_view token, float const* key) {
    float const* from = key;
    if (mode_ == mode::turned || (mode_ == mode::sinks_shifted && token.position >= sinks_)) {
      from = turned(key, keys.channels, turn(token.rotary_position));
    }
    copy(from, keys(row, head, slot), keys.channels, keys.channel_stride);
  }
  template <slot_addressed View>
  void put_value(View values, index_t row, index_t head, index_t slot, float const* value) {
    copy(value, values(row, head, slot), values.channels, values.channel_stride);
  }

  /// Turns the keys of one row that this step's queries see otherwise than they lie.
  ///
  /// @param lane_of  `attended_lane<P> (kv_head)`, all the step's tokens in it
  template <slot_addressed View, class LaneOf>
  void begin_row(View keys, index_t row, LaneOf&& lane_of) {
    if (mode_ != mode::by_rank && mode_ != mode::sinks_shifted) return;
    auto const channels = static_cast<std::size_t>(keys.channels);
    turned_keys_.resize(static_cast<std::size_t>(keys.kv_heads));
    for (index_t head = 0; head < keys.kv_heads; ++head) {
      attended_lane<P> const lane = lane_of(head);
      auto const count = static_cast<index_t>(lane.slots.size());
      std::vector<float>& to = turned_keys_[static_cast<std::size_t>(head)];
      index_t const touched = mode_ == mode::by_rank ? count : count_sinks(lane);
      to.resize(static_cast<std::size_t>(touched) * channels);
      for (index_t rank = 0; rank < touched; ++rank) {
        auto const* const key = keys(row, head, lane.slots[static_cast<std::size_t>(rank)]);
        float* const place = to.data() + static_cast<std::size_t>(rank) * channels;
        for (index_t c = 0; c < keys.channels; ++c) {
          place[c] = static_cast<float>(key[c * keys.channel_stride]);
        }
        rotation_->rotate(place,
                          place,
                          mode_ == mode::by_rank
                              ? ranks_[static_cast<std::size_t>(rank)]
                              : turn(rank + lane.positions.back() - (count - 1)));
      }
    }
    channels_ = keys.channels;
  }
  /// The turned key of a rank, nullptr if it is attended as it lies.
  float const* turned_key(index_t head, index_t rank) const {
    if (mode_ != mode::by_rank && mode_ != mode::sinks_shifted) return nullptr;
    std::vector<float> const& keys = turned_keys_[static_cast<std::size_t>(head)];
    std::size_t const begin = static_cast<std::size_t>(rank) * static_cast<std::size_t>(channels_);
    return begin < keys.size() ? keys.data() + begin : nullptr;
  }
  /// All heads of a query, [head, channel], turned; valid until the next call.
  ///
  /// @param rank_of  `index_t (head)`: rank of the query's own token in the head's lane
  template <class RankOf>
  float const* turn_query(
      float const* query, index_t heads, index_t channels, position_t rotary, RankOf&& rank_of) {
    if (mode_ == mode::as_given) return query;
    query_.assign(query, query + static_cast<stride_t>(heads) * channels);
    for (index_t head = 0; head < heads; ++head) {
      float* const place = query_.data() + static_cast<stride_t>(head) * channels;
      rotation_->rotate(
          place,
          place,
          mode_ == mode::by_rank ? ranks_[static_cast<std::size_t>(rank_of(head))] : turn(rotary));
    }
    return query_.data();
  }
  /// A head's query or key inside a dense prompt, where rank and position agree.
  void turn_in_prompt(
      float const* from, float* to, index_t channels, position_t rotary, index_t rank) {
    std::copy_n(from, channels, to);
    if (mode_ == mode::as_given) return;
    rotation_->rotate(to, to, turn(mode_ == mode::turned ? rotary : rank));
  }

 private:
  enum class mode : std::uint8_t { as_given, turned, by_rank, sinks_shifted };
  static constexpr std::size_t turn_places = 256;
  struct placed_turn {
    std::int64_t position = -1;
    rope::rotation by;
  };

  /// Sines are dear; a step uses the same few positions in every layer and head.
  rope::rotation const& turn(std::int64_t position) {
    placed_turn& place = turns_[static_cast<std::size_t>(position) % turn_places];
    if (place.position != position) place = {position, rotation_->at(position)};
    return place.by;
  }
  float const* turned(float const* from, index_t channels, rope::rotation const& by) {
    key_.assign(from, from + channels);
    rotation_->rotate(key_.data(), key_.data(), by);
    return key_.data();
  }
  index_t count_sinks(attended_lane<P> const& lane) const {
    auto const end = std::lower_bound(lane.positions.begin(), lane.positions.end(), sinks_);
    return static_cast<index_t>(end - lane.positions.begin());
  }
  template <class T>
  static void copy(float const* from, T* to, index_t channels, stride_t stride) {
    for (index_t c = 0; c < channels; ++c) to[c * stride] = static_cast<T>(from[c]);
  }

  std::optional<rope> rotation_;
  mode mode_ = mode::as_given;
  index_t sinks_ = 0, channels_ = 0;
  std::vector<rope::rotation> ranks_;            // [rank]
  std::vector<placed_turn> turns_;               // [position mod places]
  std::vector<std::vector<float>> turned_keys_;  // [kv_head][rank, channel]
  std::vector<float> query_, key_;
};

}  // namespace adore
