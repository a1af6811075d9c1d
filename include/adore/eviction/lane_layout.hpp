// SPDX-License-Identifier: Apache-2.0
// How lanes are numbered, and which layers and KV heads share one.
#pragma once

#include "adore/types.hpp"

#include <cstddef>
#include <vector>

namespace adore {

/// Half-open ranges of layers and KV heads.
struct lane_extent {
  index_t first_layer, end_layer, first_head, end_head;
};

/// A lane is numbered (row * layers + layer) * kv_heads + kv_head, with the coordinates that its
/// scope does not have left out.
class lane_layout {
 public:
  lane_layout(kv_shape const& shape, scope reach)
      : shape_(shape),
        reach_(reach),
        layers_(reach == scope::model ? 1 : shape.layers),
        heads_(reach == scope::kv_head ? shape.kv_heads : 1) {
    places_.reserve(static_cast<std::size_t>(lanes()));
    for (index_t row = 0; row < shape.sequences; ++row) {
      for (index_t layer = 0; layer < layers_; ++layer) {
        for (index_t head = 0; head < heads_; ++head) places_.push_back({row, layer, head});
      }
    }
  }

  kv_shape const& shape() const noexcept { return shape_; }
  scope reach() const noexcept { return reach_; }
  index_t layers() const noexcept { return layers_; }
  index_t heads() const noexcept { return heads_; }
  index_t per_row() const noexcept { return layers_ * heads_; }
  index_t lanes() const noexcept { return shape_.sequences * per_row(); }

  /// The lane that a KV head of a layer of a row belongs to.
  index_t lane(index_t row, index_t layer, index_t kv_head) const noexcept {
    index_t const l = reach_ == scope::model ? 0 : layer;
    index_t const h = reach_ == scope::kv_head ? kv_head : 0;
    return (row * layers_ + l) * heads_ + h;
  }
  index_t row_of(index_t lane) const noexcept { return place(lane).row; }
  index_t layer_of(index_t lane) const noexcept { return place(lane).layer; }
  index_t head_of(index_t lane) const noexcept { return place(lane).kv_head; }

  /// The layers and KV heads that share a lane.
  lane_extent extent_of(index_t lane) const noexcept {
    auto const [row, layer, head] = place(lane);
    return {layer,
            reach_ == scope::model ? shape_.layers : layer + 1,
            head,
            reach_ == scope::kv_head ? head + 1 : shape_.kv_heads};
  }
  /// Calls `action(lane)` for each lane of a row, in ascending order.
  template <class Action>
  void for_lanes(index_t row, Action&& action) const {
    index_t const first = row * per_row();
    for (index_t lane = first; lane < first + per_row(); ++lane) action(lane);
  }

 private:
  struct lane_place {
    index_t row, layer, kv_head;
  };
  lane_place const& place(index_t lane) const noexcept {
    return places_[static_cast<std::size_t>(lane)];
  }

  kv_shape shape_;
  scope reach_;
  index_t layers_, heads_;
  std::vector<lane_place> places_;  // [lane]: three divisions would cost more than a ring
};

}  // namespace adore
