// SPDX-License-Identifier: Apache-2.0
// Pages that the cache would never reserve: `reserve` does not name the lane.
// expected-error: a store with 'free_pages' or 'owns' is paged and needs 'void reserve(index_t row,
// expected-error: index_t layer, index_t kv_head, std::span<index_t const> slots)'
#include "adore/kv_cache.hpp"
#include "adore/policies/sliding_window.hpp"

#include <span>

struct my_store {
  static constexpr adore::scope finest_scope = adore::scope::model;
  adore::kv_shape shape() const { return {.slots = 8, .channels = 4}; }
  adore::index_t capacity() const { return 8; }
  adore::index_t granule() const { return 4; }
  adore::index_t release(adore::released_positions const&) { return 0; }
  void reserve(adore::index_t, std::span<adore::index_t const>) {}
  void fork(adore::index_t, adore::index_t) {}
  bool owns(adore::index_t, adore::index_t) const { return true; }
  adore::index_t free_pages() const { return 2; }
  adore::kv_view<float> keys(adore::index_t) { return {}; }
  adore::kv_view<float> values(adore::index_t) { return {}; }
};

int main() {
  adore::kv_cache<my_store, adore::sliding_window> cache(my_store{}, {.size = 4});
}
