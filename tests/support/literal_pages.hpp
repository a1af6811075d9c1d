// SPDX-License-Identifier: Apache-2.0
// The literal model of a paged store: a page is an object that rows point to, and is there as long
// as somebody points to it.
#pragma once

#include "adore/types.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace adore::testing::literal {

class pages {
 public:
  using lane = std::pair<index_t, index_t>;            // layer, KV head; -1: all
  using cell = std::tuple<index_t, index_t, index_t>;  // layer, KV head, place in the page
  using page = std::map<cell, float>;

  pages(kv_shape const& shape, index_t page_size, index_t count)
      : shape_(shape), page_size_(page_size), count_(count), rows_(at(shape.sequences)) {}

  std::size_t free() const {
    std::set<page const*> there;
    for (row_pages const& r : rows_) {
      for (auto const& [number, p] : r.table) there.insert(p.get());
    }
    return at(count_) - there.size();
  }
  bool empty(index_t row) const { return rows_[at(row)].held.empty(); }
  bool holds(index_t row, lane of, index_t slot) const {
    return rows_[at(row)].held.contains({of, slot});
  }
  float value(index_t row, index_t layer, index_t head, index_t slot) const {
    page const& there = *rows_[at(row)].table.at(slot / page_size_);
    return there.at({layer, head, slot % page_size_});
  }

  /// False, and nothing has changed, if there are too few free pages.
  bool reserve(index_t row, lane of, std::vector<index_t> const& slots) {
    std::set<index_t> numbers;
    for (index_t const slot : slots) numbers.insert(slot / page_size_);
    if (!take(row, numbers)) return false;
    for (index_t const slot : slots) rows_[at(row)].held.insert({of, slot});
    return true;
  }
  void write(index_t row, lane of, index_t slot, float value) {
    for_heads(of, [&](index_t layer, index_t head) {
      (*rows_[at(row)].table.at(slot / page_size_))[{layer, head, slot % page_size_}] = value;
    });
  }
  /// Slots in the pages that came free.
  index_t release(index_t row, lane of, std::vector<index_t> const& slots) {
    std::size_t const before = free();
    row_pages& here = rows_[at(row)];
    for (index_t const slot : slots) here.held.erase({of, slot});
    std::erase_if(here.table, [&](auto const& entry) {
      return std::none_of(here.held.begin(), here.held.end(), [&](auto const& token) {
        return token.second / page_size_ == entry.first;
      });
    });
    return static_cast<index_t>(free() - before) * page_size_;
  }
  void fork(index_t from, index_t to) { rows_[at(to)] = rows_[at(from)]; }

  /// All tokens in pages that nobody else holds are taken out and laid down again in these pages,
  /// lane by lane; then the row's pages are numbered anew.
  ///
  /// @return by lane: where each slot's token is now
  std::map<lane, std::map<index_t, index_t>> compact(index_t row) {
    row_pages& here = rows_[at(row)];
    std::vector<index_t> places;  // in the row's own pages
    for (auto const& [number, p] : here.table) {
      if (p.use_count() > 1) continue;
      for (index_t i = 0; i < page_size_; ++i) places.push_back(number * page_size_ + i);
    }
    std::map<lane, std::map<index_t, index_t>> goes;
    std::map<lane, std::size_t> laid;
    std::map<std::tuple<index_t, index_t, index_t>, float> out;  // layer, head, old slot
    auto const before = here.held;
    here.held.clear();
    for (auto const& [of, slot] : before) {
      bool const own = std::binary_search(places.begin(), places.end(), slot);
      index_t const to = own ? places[laid[of]++] : slot;
      goes[of][slot] = to;
      here.held.insert({of, to});
      for_heads(of, [&, s = slot](index_t layer, index_t head) {
        out[{layer, head, s}] = value(row, layer, head, s);
      });
    }
    for (auto const& [of, tokens] : goes) {
      for (auto const& [from, to] : tokens) {
        for_heads(of, [&, f = from, t = to](index_t layer, index_t head) {
          (*here.table.at(t / page_size_))[{layer, head, t % page_size_}] =
              out.at({layer, head, f});
        });
      }
    }
    release(row, {-1, -1}, {});
    std::map<index_t, index_t> renamed;
    std::map<index_t, std::shared_ptr<page>> table;
    for (auto const& [number, p] : here.table) {
      auto const next = static_cast<index_t>(renamed.size());
      renamed[number] = next;
      table[next] = p;
    }
    here.table = table;
    std::set<std::pair<lane, index_t>> held;
    auto const rename = [&](index_t slot) {
      return renamed.at(slot / page_size_) * page_size_ + slot % page_size_;
    };
    for (auto const& [of, slot] : here.held) held.insert({of, rename(slot)});
    here.held = held;
    for (auto& [of, tokens] : goes) {
      for (auto& [from, to] : tokens) to = rename(to);
    }
    return goes;
  }

 private:
  struct row_pages {
    std::map<index_t, std::shared_ptr<page>> table;  // by number in the row
    std::set<std::pair<lane, index_t>> held;         // lane, slot
  };

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  template <class Action>
  void for_heads(lane of, Action&& action) const {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      for (index_t head = 0; head < shape_.kv_heads; ++head) {
        bool const spans_layer = of.first < 0 || of.first == layer;
        if (spans_layer && (of.second < 0 || of.second == head)) action(layer, head);
      }
    }
  }
  /// Gives the row pages of its own under these numbers.
  bool take(index_t row, std::set<index_t> const& numbers) {
    auto& table = rows_[at(row)].table;
    auto const own = [&](index_t number) {
      auto const found = table.find(number);
      return found != table.end() && found->second.use_count() == 1;
    };
    auto const wanted =
        std::count_if(numbers.begin(), numbers.end(), [&](index_t number) { return !own(number); });
    if (static_cast<std::size_t>(wanted) > free()) return false;
    for (index_t const number : numbers) {
      if (own(number)) continue;
      auto const found = table.find(number);
      table[number] =
          found == table.end() ? std::make_shared<page>() : std::make_shared<page>(*found->second);
    }
    return true;
  }

  kv_shape shape_;
  index_t page_size_, count_;
  std::vector<row_pages> rows_;
};

}  // namespace adore::testing::literal
