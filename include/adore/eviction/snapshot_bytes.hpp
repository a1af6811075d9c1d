// SPDX-License-Identifier: Apache-2.0
// The bytes of a snapshot's file: numbers and lists one after the other, a checksum, and a reader
// that says where they are not what they should be.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <istream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace adore::detail {

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

}  // namespace adore::detail
