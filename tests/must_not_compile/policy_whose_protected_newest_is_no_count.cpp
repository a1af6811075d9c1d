// SPDX-License-Identifier: Apache-2.0
// A window that is no whole number of tokens would be ignored.
// expected-error: 'protected_newest' of a policy must be 'index_t protected_newest(lane_view)
// const'
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
  constexpr float protected_newest(adore::lane_view) const noexcept { return 2.0F; }
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
