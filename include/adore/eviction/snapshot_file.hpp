// SPDX-License-Identifier: Apache-2.0
// A row's books in a file: so that a sequence can go on in another process.
#pragma once

#include "adore/eviction/row_snapshot.hpp"
#include "adore/eviction/snapshot_bytes.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <istream>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace adore {

// Layout, all numbers little-endian:
//
//   offset  bytes
//        0      8  "adorerow"
//        8      4  version: 1, or 2 if released tokens may come back
//       12      4  length of the policy's name
//       16      8  bytes of all that follows the name, the checksum not included
//       24         the policy's name
//               1  scope; 4 position of the next token; 8 seed
//               8  number of budgets, and 4 bytes each; likewise positions and rotary positions
//               8  number of bytes of slot states, and these; likewise lane states
//                  version 2 only:
//               4  phase; 8 number of ids, and 4 bytes each
//               8  number of bytes that say who is cached, and these; likewise states
//               8  number of guests, and 4 bytes each; likewise their slots
//               8  number of tokens in the tier, and 4 bytes each
//               8  number of bytes of their K/V, and these
//               8  FNV-1a (64 bits) of everything before
//
// States are the bytes of the policy's own structs as the writing compiler lays them out. A policy
// of yours whose state has padding writes bytes there that nobody has given a value.

inline constexpr std::string_view snapshot_magic = "adorerow";
inline constexpr std::uint32_t snapshot_version = 1;
inline constexpr std::uint32_t snapshot_version_with_past = 2;

/// Writes a row's books.
///
/// @param policy  name of the policy, for instance `P::name`, or its text with all fields
/// @throws std::runtime_error if the stream does not take all of it
inline void save(std::ostream& stream, row_snapshot const& row, std::string_view policy) {
  detail::snapshot_writer body;
  body.number(static_cast<std::uint8_t>(row.reach));
  body.number(row.next);
  body.number(row.seed);
  body.list(row.budgets);
  body.list(row.positions);
  body.list(row.rotary);
  body.list(row.slot_states);
  body.list(row.lane_states);
  if (row.past) {
    body.number(row.past->phase);
    body.list(row.past->ids);
    body.list(row.past->cached);
    body.list(row.past->states);
    body.list(row.past->guests);
    body.list(row.past->guest_slots);
    body.list(row.past->tier_positions);
    body.list(row.past->tier);
  }
  detail::snapshot_writer file;
  file.text(snapshot_magic);
  file.number(row.past ? snapshot_version_with_past : snapshot_version);
  file.number(static_cast<std::uint32_t>(policy.size()));
  file.number(static_cast<std::uint64_t>(body.bytes().size()));
  file.text(policy);
  file.text(body.bytes());
  detail::fnv_1a sum;
  sum.add(file.bytes().data(), file.bytes().size());
  file.number(sum.sum());
  stream.write(file.bytes().data(), static_cast<std::streamsize>(file.bytes().size()));
  if (!stream) throw std::runtime_error("adore: save: the stream took only a part of the snapshot");
}

/// Reads what `save` wrote; the stream stands behind it then.
///
/// @param policy     the name that was given to `save`
/// @param file_name  for the sentence of an error
/// @throws std::runtime_error naming file, byte and what was expected; nothing of a damaged file is
///         returned, and no more memory is asked for than the stream has bytes
inline row_snapshot load(std::istream& stream,
                         std::string_view policy,
                         std::string_view file_name) {
  detail::snapshot_reader file(stream, file_name);
  file.fetch(snapshot_magic.size(), "magic");
  if (file.text(snapshot_magic.size(), "magic") != snapshot_magic) {
    file.refuse(0, "expected \"" + std::string(snapshot_magic) + "\", the start of a row snapshot");
  }
  file.fetch(16, "header");
  auto const version = file.number<std::uint32_t>("version");
  if (version != snapshot_version && version != snapshot_version_with_past) {
    file.refuse(8,
                "expected version " + std::to_string(snapshot_version) + " or " +
                    std::to_string(snapshot_version_with_past) + ", not " +
                    std::to_string(version));
  }
  auto const name_size = file.number<std::uint32_t>("policy name");
  auto const body_size = file.number<std::uint64_t>("sizes");
  if (name_size != policy.size()) {
    file.refuse(12,
                "expected a policy name of " + std::to_string(policy.size()) + " bytes (\"" +
                    std::string(policy) + "\"), not of " + std::to_string(name_size));
  }
  file.fetch(name_size, "policy name");
  std::string const name = file.text(name_size, "policy name");
  if (name != policy) {
    file.refuse(24, "expected policy \"" + std::string(policy) + "\", not \"" + name + "\"");
  }
  std::size_t const begin = file.offset();
  file.fetch(body_size, "books");
  std::uint64_t const computed = file.checksum();
  file.fetch(sizeof(computed), "checksum");

  row_snapshot row;
  auto const reach = file.number<std::uint8_t>("scope");
  row.next = file.number<position_t>("next position");
  row.seed = file.number<std::uint64_t>("seed");
  row.budgets = file.numbers("budgets");
  row.positions = file.numbers("positions");
  row.rotary = file.numbers("rotary positions");
  row.slot_states = file.raw("slot states");
  row.lane_states = file.raw("lane states");
  if (version == snapshot_version_with_past) {
    past_snapshot& past = row.past.emplace();
    past.phase = file.number<index_t>("phase");
    past.ids = file.numbers("ids");
    past.cached = file.raw("marks of what is cached");
    past.states = file.raw("states of past tokens");
    past.guests = file.numbers("guests");
    past.guest_slots = file.numbers("slots of guests");
    past.tier_positions = file.numbers("positions in the tier");
    past.tier = file.raw("bytes of the tier");
  }
  std::size_t const end = file.offset();
  auto const stored = file.number<std::uint64_t>("checksum");
  if (stored != computed || end - begin != body_size) {
    file.refuse(end,
                "expected checksum " + std::to_string(computed) + ", not " +
                    std::to_string(stored) + ": the file is damaged");
  }
  if (reach > static_cast<std::uint8_t>(scope::kv_head)) {
    file.refuse(begin, "expected scope 0, 1 or 2, not " + std::to_string(reach));
  }
  row.reach = static_cast<scope>(reach);
  return row;
}

}  // namespace adore
