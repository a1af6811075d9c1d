// SPDX-License-Identifier: Apache-2.0
// A policy that owns memory cannot be passed to a kernel.
// expected-error: a policy is copied into kernels, so it must be trivially copyable: numbers only
#include "adore/kv_cache.hpp"
#include "adore/stores/host_store.hpp"

#include <vector>

struct my_policy {
  std::vector<float> table;
  static constexpr adore::scope default_scope = adore::scope::layer;
  constexpr adore::index_t budget() const noexcept { return 4; }
  constexpr float keep_priority(adore::slot_view, adore::lane_view) const noexcept { return 0.0F; }
  void validate() const {}
};

int main() {
  adore::host_store<float> store({.slots = 8, .channels = 4});
  adore::kv_cache<adore::host_store<float>, my_policy> cache(store, my_policy{});
}
