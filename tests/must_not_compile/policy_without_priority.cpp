// SPDX-License-Identifier: Apache-2.0
// A policy that does not rank: its priority is a double, which makes no order key.
// expected-error: a policy needs 'float keep_priority(slot_view, lane_view[, slot_state const&
// expected-error: [, lane_state const&]]) const'; larger is kept longer
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr double keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0; }
  void validate() const {}
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
