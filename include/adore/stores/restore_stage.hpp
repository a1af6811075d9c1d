// SPDX-License-Identifier: Apache-2.0
// Released K and V on their way into a tier, and back into the store.
#pragma once

#include "adore/eviction/row_snapshot.hpp"
#include "adore/kv_view.hpp"
#include "adore/rebuild/host_tier.hpp"
#include "adore/rebuild/rebuild_stage.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

namespace adore {

/// Nothing comes back into a store that chooses slots itself.
template <class Store>
class restore_stage {
 public:
  explicit restore_stage(Store&) {}
};

/// A token is in the tier as it lies in the store: per layer the K of all heads, then the V.
template <slot_store Store>
class restore_stage<Store> {
  using element = typename decltype(kv_view_of(std::declval<Store&>().keys(0)))::value_type;

 public:
  explicit restore_stage(Store& store) : shape_(store.shape()) {}

  /// @param limit_bytes  of all tokens together
  void start(std::size_t limit_bytes) {
    tier_ = host_tier<element>(bytes_per_token() / sizeof(element), limit_bytes);
  }
  std::size_t bytes() const noexcept { return tier_.bytes(); }
  void forget(index_t row) { tier_.forget(row); }

  /// @param past  of which a lost token is told that it can never come back
  template <eviction_policy P>
  void fork(rebuild_stage<P>& past, index_t from, index_t to) {
    tier_.fork(from, to, lost(past));
  }
  std::size_t bytes_per_token() const noexcept {
    return static_cast<std::size_t>(2) * static_cast<std::size_t>(shape_.layers) *
           static_cast<std::size_t>(shape_.kv_heads) * static_cast<std::size_t>(shape_.channels) *
           sizeof(element);
  }
  void save(index_t row, past_snapshot& past) const {
    tier_.for_each(row, [&](position_t position, std::span<element const> held) {
      past.tier_positions.push_back(position);
      auto const bytes = std::as_bytes(held);
      past.tier.insert(past.tier.end(), bytes.begin(), bytes.end());
    });
  }
  /// The row's tokens are the newest in the tier.
  ///
  /// @pre `saved` is sound
  template <eviction_policy P>
  void load(rebuild_stage<P>& past, index_t row, past_snapshot const& saved) {
    tier_.forget(row);
    for (std::size_t i = 0; i < saved.tier_positions.size(); ++i) {
      auto const room = tier_.put({row, saved.tier_positions[i]}, lost(past));
      if (room.empty()) continue;
      std::memcpy(room.data(), saved.tier.data() + i * bytes_per_token(), bytes_per_token());
    }
  }
  /// A token's K and V go into its slot.
  void bring_back(Store& store, rebuilt_token const& token) {
    auto const held = tier_.get({token.row, token.position});
    for_elements(store, token.row, token.slot, [&](element& x, std::size_t i) { x = held[i]; });
  }
  /// Before the slot is used again, a released token's K and V are copied.
  template <eviction_policy P>
  void stow(Store& store, rebuild_stage<P>& past, index_t row, position_t position, index_t slot) {
    if (tier_.holds({row, position})) return;  // it was back, and leaves again
    auto const room = tier_.put({row, position}, lost(past));
    if (room.empty()) return;
    for_elements(store, row, slot, [&](element const& x, std::size_t i) { room[i] = x; });
  }

 private:
  template <eviction_policy P>
  static auto lost(rebuild_stage<P>& past) {
    return [&past](auto const& gone) { past.past(gone.row).keep(gone.position); };
  }
  template <class Use>
  void for_elements(Store& store, index_t row, index_t slot, Use&& use) const {
    std::size_t i = 0;
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      for (auto const view : {kv_view_of(store.keys(layer)), kv_view_of(store.values(layer))}) {
        for (index_t head = 0; head < shape_.kv_heads; ++head) {
          element* const cells = view(row, head, slot);
          for (index_t c = 0; c < shape_.channels; ++c) use(cells[c * view.channel_stride], i++);
        }
      }
    }
  }

  kv_shape shape_;
  host_tier<element> tier_;
};

}  // namespace adore
