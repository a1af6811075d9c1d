// SPDX-License-Identifier: Apache-2.0
// An `observe` that is not told how many queries there were.
// expected-error: 'observe' of a policy must be callable as 'observe(slot_state&, slot_view,
// expected-error: lane_view, float weight, index_t queries) const'
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  struct slot_state {
    float mass = 0.0F;
  };
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
  constexpr void observe(slot_state& state,
                         adore::slot_view,
                         adore::lane_view,
                         float weight) const noexcept {
    state.mass += weight;
  }
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
