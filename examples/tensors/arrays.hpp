// SPDX-License-Identifier: Apache-2.0
// A struct of arrays as a store of its own, without a tensor type.
#pragma once

#include <adore/kv_view.hpp>
#include <adore/stores/store_concepts.hpp>
#include <adore/types.hpp>

namespace engine {

/// An engine whose Arrays has one array per channel, `float* key(layer, channel)` and `value`, each
/// [sequence, kv_head, slot], at one distance from each other. No tensor stands for that; a store
/// can say it by strides.
template <class Arrays>
class arrays_store {
 public:
  static constexpr adore::scope finest_scope = adore::scope::kv_head;

  /// @param arrays  must outlive the store
  explicit arrays_store(Arrays& arrays) : arrays_(&arrays) {}

  adore::kv_shape shape() const { return arrays_->shape; }
  adore::index_t capacity() const { return shape().slots; }
  adore::index_t granule() const { return 1; }
  adore::index_t release(adore::released_positions const& tokens) {
    return static_cast<adore::index_t>(tokens.positions.size());  // the next tokens write over them
  }
  auto keys(adore::index_t layer) { return view(arrays_->key(layer, 0), arrays_->key(layer, 1)); }
  auto values(adore::index_t layer) {
    return view(arrays_->value(layer, 0), arrays_->value(layer, 1));
  }

 private:
  adore::kv_view<float> view(float* first_channel, float* second_channel) const {
    adore::kv_shape const s = shape();
    adore::kv_view<float> all(first_channel, s.sequences, s.kv_heads, s.slots, s.channels);
    all.sequence_stride = adore::stride_t{s.kv_heads} * s.slots;
    all.kv_head_stride = s.slots;
    all.slot_stride = 1;
    all.channel_stride = second_channel - first_channel;
    return all;
  }

  Arrays* arrays_;
};

}  // namespace engine
