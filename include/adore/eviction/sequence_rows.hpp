// SPDX-License-Identifier: Apache-2.0
// Which rows hold a sequence, and how far each has come.
#pragma once

#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore {

class sequence_rows {
 public:
  explicit sequence_rows(index_t rows) : rows_(static_cast<std::size_t>(rows)) {}

  bool is_open(index_t row) const noexcept { return at(row).open; }
  /// Position of the next token = tokens seen so far.
  position_t next(index_t row) const noexcept { return at(row).next; }
  std::uint64_t seed(index_t row) const noexcept { return at(row).seed; }

  void open(index_t row, std::uint64_t seed, position_t next) noexcept {
    at(row) = {next, seed, true};
  }
  void close(index_t row) noexcept { at(row).open = false; }
  void copy(index_t from, index_t to) noexcept { at(to) = at(from); }
  void advance(index_t row, index_t tokens) noexcept { at(row).next += tokens; }

  /// @param what  the call that asks, for the sentence
  /// @throws std::invalid_argument if there is no such row
  /// @throws std::logic_error unless it holds a sequence
  void require_open(index_t row, char const* what) const {
    require(row);
    if (!is_open(row)) refuse(row, what, "holds no sequence; open it first");
  }
  /// @throws std::invalid_argument if there is no such row
  /// @throws std::logic_error if it holds a sequence
  void require_free(index_t row, char const* what) const {
    require(row);
    if (is_open(row)) refuse(row, what, "holds a sequence; close it first");
  }
  /// @throws std::length_error if `count` more tokens would pass the last position
  void require_before_end(index_t row, index_t count) const {
    if (count - 1 > last_position - next(row)) refuse_end(row);
  }

 private:
  struct row_record {
    position_t next = 0;
    std::uint64_t seed = 0;
    bool open = false;
  };
  row_record& at(index_t row) noexcept { return rows_[static_cast<std::size_t>(row)]; }
  row_record const& at(index_t row) const noexcept { return rows_[static_cast<std::size_t>(row)]; }

  void require(index_t row) const {
    if (row < 0 || static_cast<std::size_t>(row) >= rows_.size()) {
      throw std::invalid_argument("adore: row = " + std::to_string(row) +
                                  ": the cache has rows 0 to " +
                                  std::to_string(static_cast<index_t>(rows_.size()) - 1));
    }
  }
  // Sentences are made elsewhere: their strings would cost the callers a large stack frame.
  [[noreturn]] static void refuse(index_t row, char const* what, char const* why) {
    throw std::logic_error(std::string("adore: ") + what + ": row " + std::to_string(row) + " " +
                           why);
  }
  [[noreturn]] void refuse_end(index_t row) const {
    throw std::length_error("adore: a sequence ends at position 2^31 - 1; row " +
                            std::to_string(row) + " has seen " + std::to_string(next(row)) +
                            " tokens");
  }

  std::vector<row_record> rows_;  // [row]
};

}  // namespace adore
