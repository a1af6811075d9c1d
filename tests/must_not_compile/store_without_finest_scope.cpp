// SPDX-License-Identifier: Apache-2.0
// A store that does not tell how finely it can release.
// expected-error: a store needs 'static constexpr scope finest_scope', how finely it can release
#include "adore/kv_cache.hpp"
#include "adore/policies/sliding_window.hpp"

struct my_store {
  adore::kv_shape shape() const { return {.slots = 8, .channels = 4}; }
  adore::index_t capacity() const { return 8; }
  adore::index_t granule() const { return 1; }
  adore::index_t release(adore::released_positions const& tokens) {
    return static_cast<adore::index_t>(tokens.positions.size());
  }
};

int main() {
  adore::kv_cache<my_store, adore::sliding_window> cache(my_store{}, {.size = 4});
}
