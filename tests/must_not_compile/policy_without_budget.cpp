// SPDX-License-Identifier: Apache-2.0
// Nobody says how many tokens a lane keeps.
// expected-error: a policy needs 'index_t budget() const', the tokens that each lane keeps
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
