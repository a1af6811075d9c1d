// SPDX-License-Identifier: Apache-2.0
// A release that hides how many tokens came free.
// expected-error: a store needs 'index_t release(released_positions const&)',
// expected-error: which returns how many tokens really came free
#include "adore/kv_cache.hpp"
#include "adore/policies/sliding_window.hpp"

struct my_store {
  static constexpr adore::scope finest_scope = adore::scope::model;
  adore::kv_shape shape() const { return {.slots = 8, .channels = 4}; }
  adore::index_t capacity() const { return 8; }
  adore::index_t granule() const { return 1; }
  void release(adore::released_positions const&) {}
};

int main() {
  adore::kv_cache<my_store, adore::sliding_window> cache(my_store{}, {.size = 4});
}
