// SPDX-License-Identifier: Apache-2.0
// Compression by sentinel tokens: spans <CL> ... <CR>, who sees whom, rotary positions, the
// release.
#pragma once

#include "literal_lane.hpp"

#include <cstddef>
#include <stdexcept>
#include <vector>

namespace literal {

/// Positions of <CL> and <CR>; close = -1 while the span is open.
struct span {
  int open;
  int close;
};

/// Nested spans are closed innermost first, by a stack, as the published code does.
class span_list {
 public:
  void add(int position, role kind) {
    if (kind == role::open) {
      still_open_.push_back(all_.size());
      all_.push_back({position, -1});
    }
    if (kind == role::close) {
      if (still_open_.empty()) throw std::invalid_argument("<CR> without <CL>");
      all_[still_open_.back()].close = position;
      still_open_.pop_back();
    }
  }
  std::vector<span> const& all() const { return all_; }

  /// Index of the innermost span with the position in its interior, -1 if there is none.
  int around(int position) const {
    int innermost = -1;
    for (std::size_t i = 0; i < all_.size(); ++i) {
      bool const inside =
          all_[i].open < position && (all_[i].close == -1 || position < all_[i].close);
      if (inside) innermost = static_cast<int>(i);
    }
    return innermost;
  }

 private:
  std::vector<span> all_;
  std::vector<std::size_t> still_open_;
};

/// Does the query at position `query` see the key at position `key`? roles[i] is position i's.
inline bool sentinel_sees(std::vector<role> const& roles, int query, int key) {
  span_list spans;
  for (std::size_t i = 0; i < roles.size(); ++i) spans.add(static_cast<int>(i), roles[i]);
  if (key > query) return false;
  if (key == query) return true;
  role const of_query = roles.at(static_cast<std::size_t>(query));
  role const of_key = roles.at(static_cast<std::size_t>(key));
  if (of_query == role::open) return false;
  if (of_query == role::close) {
    for (span const& s : spans.all()) {
      if (s.close == query) return s.open <= key;
    }
  }
  if (of_key == role::close) return true;
  if (of_key == role::open) return false;
  return spans.around(key) == -1 || spans.around(key) == spans.around(query);
}

/// Ordinary tokens are numbered without the sentinels; a sentinel repeats its predecessor's.
inline std::vector<int> sentinel_positions(std::vector<role> const& roles) {
  std::vector<int> positions;
  int ordinary = 0;
  for (role const kind : roles) {
    if (kind == role::ordinary) {
      positions.push_back(ordinary++);
    } else {
      positions.push_back(positions.empty() ? 0 : positions.back());
    }
  }
  return positions;
}

/// <CL> and interior of a closed span die when its <CR> is at most newest - tail; <CR> stays.
class sentinel : public rule_of<sentinel> {
 public:
  explicit sentinel(int tail = 0) : tail_(tail) {
    if (tail < 0) throw std::invalid_argument("tail");
  }
  int budget() const override { return unbounded; }
  void arrive(int position, token const& what) override { spans_.add(position, what.kind); }
  float priority(int position, facts const& now) const override {
    for (span const& s : spans_.all()) {
      bool const over = s.close != -1 && s.close <= now.newest - tail_;
      if (over && s.open <= position && position < s.close) return keep_never;
    }
    return 0.0F;
  }

 private:
  int tail_;
  span_list spans_;
};

}  // namespace literal
