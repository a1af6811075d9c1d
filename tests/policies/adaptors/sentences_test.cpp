// SPDX-License-Identifier: Apache-2.0
// An adaptor refuses numbers in a sentence with its own name, the field and the value, and lets the
// policy inside speak for itself.
#include "adore/policies/adaptors/ada_kv.hpp"
#include "adore/policies/adaptors/decayed.hpp"
#include "adore/policies/adaptors/delayed.hpp"
#include "adore/policies/adaptors/in_blocks.hpp"
#include "adore/policies/adaptors/newest_of_equals_first.hpp"
#include "adore/policies/adaptors/pyramid.hpp"
#include "adore/policies/adaptors/with_protection.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/tova.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

// g++ -Wextra takes the empty base of an adaptor for a field that {.of = ...} forgets
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace adore::testing {

namespace {

template <class P>
std::string refusal(P const& policy) {
  try {
    policy.validate();
    return "accepted";
  } catch (std::invalid_argument const& error) {
    return error.what();
  }
}

template <template <class> class Adaptor>
void lets_inner_speak() {
  CHECK(refusal(Adaptor<h2o>{.of = {.heavy = -1, .recent = 500}}) ==
        "adore: h2o.heavy = -1: must not be negative");
  CHECK(refusal(Adaptor<Adaptor<h2o>>{.of = {.of = {.heavy = -1, .recent = 500}}}) ==
        "adore: h2o.heavy = -1: must not be negative");
  CHECK(refusal(Adaptor<h2o>{}) == "accepted");
}

}  // namespace

TEST_CASE("an adaptor names the field and the value that it refuses") {
  CHECK(refusal(with_protection<h2o>{.sinks = -1}) ==
        "adore: with_protection.sinks = -1: must not be negative");
  CHECK(refusal(with_protection<h2o>{.recent = -2}) ==
        "adore: with_protection.recent = -2: must not be negative");
  CHECK(refusal(with_protection<tova>{.of = {.size = 8}, .sinks = 5, .recent = 4}) ==
        "adore: with_protection.sinks = 5: with the recent ones exceed the budget");
  CHECK(refusal(in_blocks<h2o>{.size = 0}) == "adore: in_blocks.size = 0: must be at least 1");
  CHECK(refusal(delayed<h2o>{.queries = -1}) ==
        "adore: delayed.queries = -1: must not be negative");
  CHECK(refusal(decayed<h2o>{.factor = 0.0F}) ==
        "adore: decayed.factor = 0.000000: must lie in (0, 1]");
  CHECK(refusal(pyramid<h2o>{.beta = 0}) == "adore: pyramid.beta = 0: must be at least 1");
  CHECK(refusal(pyramid<tova>{.of = {.size = 19}}) ==
        "adore: pyramid.beta = 20: must not exceed the budget beside the protected newest tokens, "
        "so that the top layer keeps a token");
  CHECK(refusal(ada_kv<h2o>{.floor = 1.5F}) ==
        "adore: ada_kv.floor = 1.500000: must lie in [0, 1]");
}

TEST_CASE("numbers at the border of what makes sense are accepted") {
  CHECK(refusal(with_protection<tova>{.of = {.size = 8}, .sinks = 4, .recent = 4}) == "accepted");
  CHECK(refusal(in_blocks<h2o>{.size = 1}) == "accepted");
  CHECK(refusal(delayed<h2o>{.queries = 0}) == "accepted");
  CHECK(refusal(decayed<h2o>{.factor = 1.0F}) == "accepted");
  CHECK(refusal(pyramid<tova>{.of = {.size = 20}}) == "accepted");
  CHECK(refusal(ada_kv<h2o>{.floor = 0.0F}) == "accepted");
  CHECK(refusal(ada_kv<h2o>{.floor = 1.0F}) == "accepted");
}

TEST_CASE("the policy inside refuses its own numbers, however deep it lies") {
  lets_inner_speak<with_protection>();
  lets_inner_speak<in_blocks>();
  lets_inner_speak<delayed>();
  lets_inner_speak<newest_of_equals_first>();
  lets_inner_speak<pyramid>();
  lets_inner_speak<ada_kv>();
  CHECK(refusal(decayed<decayed<h2o>>{.of = {.of = {.heavy = -1}}}) ==
        "adore: h2o.heavy = -1: must not be negative");
}

}  // namespace adore::testing
