// SPDX-License-Identifier: Apache-2.0
// A store that does not tell its sizes.
// expected-error: a store needs 'kv_shape shape() const': sequences, layers, KV heads, slots per
// lane, expected-error: channels
#include "adore/kv_cache.hpp"
#include "adore/policies/sliding_window.hpp"

struct my_store {
  static constexpr adore::scope finest_scope = adore::scope::model;
  adore::index_t capacity() const { return 8; }
  adore::index_t granule() const { return 1; }
  adore::index_t release(adore::released_positions const& tokens) {
    return static_cast<adore::index_t>(tokens.positions.size());
  }
};

int main() {
  adore::kv_cache<my_store, adore::sliding_window> cache(my_store{}, {.size = 4});
}
