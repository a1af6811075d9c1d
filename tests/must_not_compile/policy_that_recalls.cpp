// SPDX-License-Identifier: Apache-2.0
// A wish to recall tokens must not be ignored by a cache that cannot.
// expected-error: this cache does not recall tokens
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
  constexpr adore::index_t recall_count() const noexcept { return 2; }
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
