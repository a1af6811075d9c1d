// SPDX-License-Identifier: Apache-2.0
// Policies as text, the same everywhere: "h2o(heavy=64,recent=64)", or "h2o" at a budget of 128.
#pragma once

#include "adore/concepts.hpp"
#include "adore/policies/every_policy.hpp"

#include <charconv>
#include <concepts>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore {

/// A policy's name and the fields that a text gives it.
struct policy_text {
  std::string name;
  std::vector<std::pair<std::string, std::string>> fields;  // name, value

  /// @throws std::invalid_argument saying where the text is not "name" or "name(field=value,...)"
  static policy_text parse(std::string_view text) {
    auto const trim = [](std::string_view word) {
      auto const first = word.find_first_not_of(" \t\n");
      if (first == std::string_view::npos) return std::string{};
      return std::string(word.substr(first, word.find_last_not_of(" \t\n") - first + 1));
    };
    auto const refuse = [&](char const* why) {
      throw std::invalid_argument("adore: '" + std::string(text) + "': " + why +
                                  "; write it as name or name(field=value,field=value)");
    };
    policy_text result;
    auto const open = text.find('(');
    result.name = trim(text.substr(0, open));
    if (result.name.empty()) refuse("the name is missing");
    if (open == std::string_view::npos) return result;
    std::string const tail = trim(text.substr(open));
    if (tail.back() != ')') refuse("the closing parenthesis is missing");
    std::string_view inside = std::string_view(tail).substr(1, tail.size() - 2);
    while (!trim(inside).empty()) {
      auto const comma = inside.find(',');
      std::string_view const field = inside.substr(0, comma);
      auto const equals = field.find('=');
      if (equals == std::string_view::npos) refuse("a field lacks its '='");
      result.fields.emplace_back(trim(field.substr(0, equals)), trim(field.substr(equals + 1)));
      if (comma == std::string_view::npos) break;
      inside = inside.substr(comma + 1);
    }
    return result;
  }
};

namespace detail {

template <class Value>
bool read_value(std::string const& text, Value& value) {
  if constexpr (std::is_enum_v<Value>) {
    for (int i = 0; word_of(static_cast<Value>(i)) != nullptr; ++i) {
      if (text == word_of(static_cast<Value>(i))) {
        value = static_cast<Value>(i);
        return true;
      }
    }
    return false;
  } else if constexpr (std::same_as<Value, bool>) {
    value = text == "true";
    return text == "true" || text == "false";
  } else {
    auto const end = text.data() + text.size();
    auto const result = std::from_chars(text.data(), end, value);
    return result.ec == std::errc{} && result.ptr == end;
  }
}

template <class Value>
std::string write_value(Value const& value) {
  if constexpr (std::is_enum_v<Value>) {
    return word_of(value);
  } else if constexpr (std::same_as<Value, bool>) {
    return value ? "true" : "false";
  } else {
    char buffer[32];
    return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
  }
}

template <class Value>
std::string choices(Value const&) {
  std::string result;
  if constexpr (std::is_enum_v<Value>) {
    for (int i = 0; word_of(static_cast<Value>(i)) != nullptr; ++i) {
      result += (i == 0 ? "one of " : ", ") + std::string(word_of(static_cast<Value>(i)));
    }
  } else {
    result = std::same_as<Value, bool> ? "true or false" : "a number";
  }
  return result;
}

}  // namespace detail

/// The m that a policy stands for in a comparison: what it keeps, or what an attention mask of the
/// same reach would keep; `unbounded` if it has none.
template <described P>
constexpr index_t nominal_budget_of(P const& policy) noexcept {
  if constexpr (requires { policy.nominal_budget(); }) {
    return policy.nominal_budget();
  } else {
    return policy.budget();
  }
}

/// "name(field=value,...)" with all fields.
template <described P>
std::string to_text(P policy) {
  std::string fields;
  P::fields(policy, [&](std::string_view name, auto& value) {
    fields.append(fields.empty() ? "" : ",").append(name).append("=");
    fields.append(detail::write_value(value));
  });
  std::string text(P::name);
  if (!fields.empty()) text.append("(").append(fields).append(")");
  return text;
}

/// Makes a policy from its text.
///
/// @param budget  sets the whole m: fields that the text does not give follow by the policy's
///                defaults for m, and `budget_field` takes what the others leave. A text that gives
///                the budget field itself, or a policy without one, is not touched by it.
/// @throws std::invalid_argument for an unknown field, a bad value, or what `validate` refuses
template <described P>
P policy_of(policy_text const& text, std::optional<index_t> budget = std::nullopt) {
  bool own_budget = std::string_view(P::budget_field).empty() || !budget;
  for (auto const& field : text.fields) own_budget = own_budget || field.first == P::budget_field;
  P policy = own_budget ? P{} : P::of_budget(*budget);
  for (auto const& entry : text.fields) {
    std::string const& name = entry.first;
    std::string const& given = entry.second;
    bool known = false;
    std::string names;
    P::fields(policy, [&](std::string_view field, auto& value) {
      names += (names.empty() ? "" : ", ") + std::string(field);
      if (field != name) return;
      known = true;
      if (!detail::read_value(given, value)) {
        throw std::invalid_argument("adore: " + text.name + "." + name + " = " + given +
                                    ": must be " + detail::choices(value));
      }
    });
    if (!known) {
      throw std::invalid_argument("adore: " + text.name + " has no field '" + name + "'; " +
                                  (names.empty() ? "it has none" : "its fields are " + names));
    }
  }
  if (!own_budget && nominal_budget_of(policy) != unbounded) {
    index_t const left = *budget - nominal_budget_of(policy);
    P::fields(policy, [&](std::string_view field, auto& value) {
      if constexpr (std::same_as<std::remove_cvref_t<decltype(value)>, index_t>) {
        if (field == P::budget_field) value += left;
      }
    });
  }
  policy.validate();
  return policy;
}

/// Calls `use(policy)` with the policy that a text names.
///
/// @throws std::invalid_argument as `policy_of`, and for an unknown name, with the list of names
template <class Use, class... Policies>
void with_policy(std::string_view text,
                 std::optional<index_t> budget,
                 policy_list<Policies...>,
                 Use&& use) {
  policy_text const parsed = policy_text::parse(text);
  bool const found =
      ((parsed.name == Policies::name && (use(policy_of<Policies>(parsed, budget)), true)) || ...);
  if (found) return;
  std::string names;
  ((names += (names.empty() ? "" : ", ") + std::string(Policies::name)), ...);
  throw std::invalid_argument("adore: there is no policy '" + parsed.name + "'; there are " +
                              names);
}
/// ... from the list of all policies.
template <class Use>
void with_policy(std::string_view text, std::optional<index_t> budget, Use&& use) {
  with_policy(text, budget, every_policy{}, std::forward<Use>(use));
}

}  // namespace adore
