// SPDX-License-Identifier: Apache-2.0
// What an exception says, for tests of sentences.
#pragma once

#include <doctest/doctest.h>

#include <exception>
#include <string>
#include <utility>

namespace adore::testing {

/// What `call` throws says; "" if it throws nothing.
template <class Call>
std::string complaint_of(Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (std::exception const& error) {
    return error.what();
  }
  return "";
}

inline void check_contains(std::string const& text, std::string const& part) {
  CAPTURE(text);
  CAPTURE(part);
  CHECK(text.find(part) != std::string::npos);
}

}  // namespace adore::testing
