// SPDX-License-Identifier: Apache-2.0
// The smallest program that a user can write: a policy, its budget.
#include <adore/adore.hpp>

#include <cstdio>

int main() {
  constexpr adore::streaming_llm policy{.sinks = 4, .window = 60};
  std::printf("%lld\n", static_cast<long long>(policy.budget()));
  return policy.budget() == 64 ? 0 : 1;
}
