// SPDX-License-Identifier: Apache-2.0
// Nobody says which lanes the policy is meant for.
// expected-error: a policy needs 'static constexpr scope default_scope', the lanes it is meant for
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

struct my_policy {
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
