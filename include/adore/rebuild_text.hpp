// SPDX-License-Identifier: Apache-2.0
// How released tokens come back, as text: "rebuild(count=8,schedule=on_entry,pool=16)".
#pragma once

#include "adore/policy_text.hpp"
#include "adore/rebuild/schedule.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>

namespace adore {

/// The schedules by name.
enum class schedule_name : std::uint8_t { every_step, on_entry, every, restore };
constexpr char const* word_of(schedule_name name) noexcept {
  switch (name) {
    case schedule_name::every_step:
      return "every_step";
    case schedule_name::on_entry:
      return "on_entry";
    case schedule_name::every:
      return "every";
    case schedule_name::restore:
      return "restore";
  }
  return nullptr;
}

/// Fields: count, schedule, pool (on_entry), steps (every), limit_mb (restore), mask, admit, score.
///
/// @throws std::invalid_argument for another name than "rebuild", an unknown field, a bad value, or
///         a field of another schedule
inline rebuild_options rebuild_of(std::string_view text) {
  policy_text const parsed = policy_text::parse(text);
  auto const refuse = [&](std::string const& why) {
    throw std::invalid_argument("adore: '" + std::string(text) + "': " + why);
  };
  if (parsed.name != "rebuild") refuse("is not rebuild(field=value,...)");
  rebuild_options options;
  options.count = 8;
  schedule_name schedule = schedule_name::every_step;
  index_t pool = 0;
  index_t steps = 8;
  index_t limit_mb = 0;
  schedule_name needs = schedule_name::every_step;  // what the given fields are of
  for (auto const& entry : parsed.fields) {  // C++20 lambdas do not capture structured bindings
    std::string const& name = entry.first;
    std::string const& given = entry.second;
    auto const read = [&](auto& value) {
      if (!detail::read_value(given, value)) {
        refuse(name + " = " + given + ": must be " + detail::choices(value));
      }
    };
    if (name == "count") {
      read(options.count);
    } else if (name == "schedule") {
      read(schedule);
    } else if (name == "pool") {
      read(pool);
      needs = schedule_name::on_entry;
    } else if (name == "steps") {
      read(steps);
      needs = schedule_name::every;
    } else if (name == "limit_mb") {
      read(limit_mb);
      needs = schedule_name::restore;
    } else if (name == "mask") {
      read(options.mask);
    } else if (name == "admit") {
      read(options.admit);
    } else if (name == "score") {
      read(options.score);
    } else {
      refuse("there is no field '" + name +
             "'; there are count, schedule, pool, steps, limit_mb, mask, admit, score");
    }
  }
  if (needs != schedule_name::every_step && needs != schedule) {
    refuse(std::string("a field is given that belongs to schedule=") + word_of(needs));
  }
  if (options.count < 1) refuse("count: must be at least 1");
  switch (schedule) {
    case schedule_name::every_step:
      break;
    case schedule_name::on_entry:
      options.schedule = on_entry{pool};
      break;
    case schedule_name::every:
      options.schedule = every{steps};
      break;
    case schedule_name::restore:
      if (limit_mb > 0) {
        options.schedule = restore{static_cast<std::size_t>(limit_mb) * 1000 * 1000};
      } else {
        options.schedule = restore{};
      }
      break;
  }
  return options;
}

}  // namespace adore
