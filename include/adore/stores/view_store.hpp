// SPDX-License-Identifier: Apache-2.0
// An engine's own K/V tensors as a store: the library keeps views, the engine keeps the memory.
#pragma once

#include "adore/kv_view.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/types.hpp"

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adore {

/// One K and one V tensor per layer, of any type with `adore_kv_view`, or plain `kv_view`s.
template <class Tensor>
class view_store {
 public:
  static constexpr scope finest_scope = scope::kv_head;

  /// @param keys, values  one per layer, all of one shape; they must outlive the store or, being
  ///                      handles, keep their memory alive
  /// @throws std::invalid_argument if shapes differ, naming the layer
  view_store(std::vector<Tensor> keys, std::vector<Tensor> values)
      : keys_(std::move(keys)), values_(std::move(values)) {
    if (keys_.empty() || keys_.size() != values_.size()) {
      throw std::invalid_argument(
          "adore: view_store: as many K as V tensors are needed, and one at "
          "least; got " +
          std::to_string(keys_.size()) + " and " + std::to_string(values_.size()));
    }
    auto const first = kv_view_of(keys_.front());
    shape_ = {first.sequences,
              static_cast<index_t>(keys_.size()),
              first.kv_heads,
              first.slots,
              first.channels};
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      require_shape(kv_view_of(keys_[layer]), "K", layer);
      require_shape(kv_view_of(values_[layer]), "V", layer);
    }
  }

  kv_shape shape() const noexcept { return shape_; }
  index_t capacity() const noexcept { return shape_.slots; }
  index_t granule() const noexcept { return 1; }
  index_t release(released_positions const& tokens) noexcept {
    return static_cast<index_t>(tokens.positions.size());
  }
  auto keys(index_t layer) { return kv_view_of(keys_[static_cast<std::size_t>(layer)]); }
  auto values(index_t layer) { return kv_view_of(values_[static_cast<std::size_t>(layer)]); }

 private:
  template <class View>
  void require_shape(View const& view, char const* what, std::size_t layer) const {
    if (view.sequences != shape_.sequences || view.kv_heads != shape_.kv_heads ||
        view.slots != shape_.slots || view.channels != shape_.channels) {
      throw std::invalid_argument(std::string("adore: view_store: the ") + what +
                                  " tensor of layer " + std::to_string(layer) +
                                  " differs in shape from K of layer 0");
    }
  }

  std::vector<Tensor> keys_, values_;
  kv_shape shape_;
};

static_assert(slot_store<view_store<kv_view<float>>>);

}  // namespace adore
