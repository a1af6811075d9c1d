// SPDX-License-Identifier: Apache-2.0
// A row's books in a file: so that a sequence can go on in another process.
#pragma once

#include "adore/eviction/ledger.hpp"
#include "adore/types.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <istream>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace adore {

// Layout, all numbers little-endian:
//
//   offset  bytes
//        0      8  "adorerow"
//        8      4  version, 1
//       12      4  length of the policy's name
//       16      8  bytes of all that follows the name, the checksum not included
//       24         the policy's name
//               1  scope; 4 position of the next token; 8 seed
//               8  number of budgets, and 4 bytes each; likewise positions and rotary positions
//               8  number of bytes of slot states, and these; likewise lane states
//               8  FNV-1a (64 bits) of everything before
//
// States are the bytes of the policy's own structs as the writing compiler lays them out. A policy
// of yours whose state has padding writes bytes there that nobody has given a value.

inline constexpr std::string_view snapshot_magic = "adorerow";
inline constexpr std::uint32_t snapshot_version = 1;

namespace detail {

static_assert(std::endian::native == std::endian::little,
              "adore: slot states are written as they lie in memory, little-endian");

class fnv_1a {
 public:
  void add(char const* bytes, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      sum_ = (sum_ ^ static_cast<unsigned char>(bytes[i])) * 0x100000001B3U;
    }
  }
  std::uint64_t sum() const noexcept { return sum_; }

 private:
  std::uint64_t sum_ = 0xCBF29CE484222325U;
};

/// The bytes of a file in the making.
class snapshot_writer {
 public:
  template <class T>
  void number(T value) {
    auto rest = static_cast<std::uint64_t>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i, rest >>= 8U) {
      bytes_.push_back(static_cast<char>(static_cast<unsigned char>(rest & 0xFFU)));
    }
  }
  void text(std::string_view text) { bytes_.append(text); }
  void list(std::vector<index_t> const& numbers) {
    number(static_cast<std::uint64_t>(numbers.size()));
    for (index_t const n : numbers) number(n);
  }
  void list(std::vector<std::byte> const& bytes) {
    number(static_cast<std::uint64_t>(bytes.size()));
    bytes_.append(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  }
  std::string const& bytes() const noexcept { return bytes_; }

 private:
  std::string bytes_;
};

/// Takes a file apart and says where it is not what it should be.
class snapshot_reader {
 public:
  snapshot_reader(std::istream& stream, std::string_view file_name)
      : stream_(stream), file_name_(file_name) {}

  [[noreturn]] void refuse(std::size_t offset, std::string const& expected) const {
    throw std::runtime_error("adore: " + file_name_ + ", byte " + std::to_string(offset) + ": " +
                             expected);
  }
  std::size_t offset() const noexcept { return next_; }

  /// Takes `count` more bytes from the stream, in pieces: a damaged count cannot ask for more
  /// memory than the stream has bytes.
  void fetch(std::uint64_t count, char const* what) {
    constexpr std::uint64_t piece = 1U << 16U;
    for (std::uint64_t rest = count; rest > 0;) {
      std::size_t const here = bytes_.size();
      auto const wanted = static_cast<std::size_t>(std::min(rest, piece));
      bytes_.resize(here + wanted);
      stream_.read(bytes_.data() + here, static_cast<std::streamsize>(wanted));
      auto const got = static_cast<std::size_t>(stream_.gcount());
      if (got < wanted) {
        refuse(here + got,
               std::string("the file ends here; ") + std::to_string(rest - got) +
                   " more bytes of " + what + " were expected");
      }
      rest -= wanted;
    }
  }

  template <class T>
  T number(char const* what) {
    require(sizeof(T), what);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value |= std::uint64_t{static_cast<unsigned char>(bytes_[next_ + i])} << (8U * i);
    }
    next_ += sizeof(T);
    return static_cast<T>(value);
  }
  std::string text(std::size_t count, char const* what) {
    require(count, what);
    next_ += count;
    return bytes_.substr(next_ - count, count);
  }
  std::vector<index_t> numbers(char const* what) {
    std::size_t const count = size(sizeof(index_t), what);
    std::vector<index_t> result(count);
    for (index_t& n : result) n = number<index_t>(what);
    return result;
  }
  std::vector<std::byte> raw(char const* what) {
    std::size_t const count = size(1, what);
    std::vector<std::byte> result(count);
    std::transform(bytes_.begin() + static_cast<std::ptrdiff_t>(next_),
                   bytes_.begin() + static_cast<std::ptrdiff_t>(next_ + count),
                   result.begin(),
                   [](char c) { return static_cast<std::byte>(c); });
    next_ += count;
    return result;
  }
  /// Bytes that have been fetched and not been taken apart.
  std::size_t left() const noexcept { return bytes_.size() - next_; }
  std::uint64_t checksum() const noexcept {
    fnv_1a sum;
    sum.add(bytes_.data(), bytes_.size());
    return sum.sum();
  }

 private:
  void require(std::size_t count, char const* what) const {
    if (left() < count) {
      refuse(next_,
             std::string(what) + " needs " + std::to_string(count) + " bytes, but only " +
                 std::to_string(left()) + " are left");
    }
  }
  std::size_t size(std::size_t element, char const* what) {
    std::size_t const here = next_;
    auto const count = number<std::uint64_t>(what);
    if (count > left() / element) {
      refuse(here,
             "at most " + std::to_string(left() / element) + " " + what +
                 " fit into the rest, not " + std::to_string(count));
    }
    return static_cast<std::size_t>(count);
  }

  std::istream& stream_;
  std::string file_name_;
  std::string bytes_;  // fetched so far; an offset in it is one in the file
  std::size_t next_ = 0;
};

}  // namespace detail

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
  detail::snapshot_writer file;
  file.text(snapshot_magic);
  file.number(snapshot_version);
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
  if (version != snapshot_version) {
    file.refuse(8,
                "expected version " + std::to_string(snapshot_version) + ", not " +
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
