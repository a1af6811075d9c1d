// SPDX-License-Identifier: Apache-2.0
// Keys behind a bare pointer: nobody knows how far apart they lie.
// expected-error: a store with 'keys' is addressed by slot and needs 'keys(index_t layer)' and
// expected-error: 'values(index_t layer)' that give a kv_view or a tensor with 'adore_kv_view'
#include "adore/kv_cache.hpp"
#include "adore/policies/sliding_window.hpp"

struct my_store {
  static constexpr adore::scope finest_scope = adore::scope::model;
  adore::kv_shape shape() const { return {.slots = 8, .channels = 4}; }
  adore::index_t capacity() const { return 8; }
  adore::index_t granule() const { return 1; }
  adore::index_t release(adore::released_positions const& tokens) {
    return static_cast<adore::index_t>(tokens.positions.size());
  }
  float* keys(adore::index_t) { return nullptr; }
  float* values(adore::index_t) { return nullptr; }
};

int main() {
  adore::kv_cache<my_store, adore::sliding_window> cache(my_store{}, {.size = 4});
}
