// SPDX-License-Identifier: Apache-2.0
// Pages are taken when a slot needs them, shared by a fork, copied before they are written, and
// come back when they are empty.
#include "adore/stores/paged_store.hpp"

#include "support/literal_pages.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::testing {

namespace {

using slot_list = std::vector<index_t>;
using store = paged_store<float>;

/// Lanes of scope model, one layer and head, one channel: a token is one number.
store small_store(index_t rows, index_t slots, page_options const& how) {
  return store({.sequences = rows, .slots = slots, .channels = 1}, how);
}
void put(store& pages, index_t row, slot_list const& slots, float first) {
  pages.reserve(row, -1, -1, slots);
  for (index_t const slot : slots) *pages.keys(0)(row, 0, slot) = first++;
}
index_t drop(store& pages, index_t row, slot_list const& slots) {
  return pages.release({row, -1, -1, {}, slots});
}
std::vector<float> keys(store& pages, index_t row, slot_list const& slots) {
  std::vector<float> result;
  for (index_t const slot : slots) result.push_back(*pages.keys(0)(row, 0, slot));
  return result;
}
std::vector<index_t> numbers(std::span<index_t const> span) {
  return {span.begin(), span.end()};
}
template <class Action>
std::string refusal(Action&& action) {
  try {
    action();
  } catch (std::exception const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a page is taken with the first slot of a block and comes back with its last token") {
  store pages = small_store(1, 7, {.page_size = 4, .pages = 5});
  CHECK(pages.shape().slots == 8);  // whole pages
  CHECK(pages.capacity() == 8);
  CHECK(pages.granule() == 4);
  CHECK(pages.free_pages() == 5);
  put(pages, 0, {0, 1, 2, 3}, 10);
  CHECK(pages.free_pages() == 4);
  put(pages, 0, {4}, 14);
  CHECK(pages.free_pages() == 3);
  CHECK(keys(pages, 0, {0, 1, 2, 3, 4}) == std::vector<float>{10, 11, 12, 13, 14});
  CHECK(drop(pages, 0, {0, 1, 3}) == 0);
  CHECK(pages.free_pages() == 3);
  CHECK(drop(pages, 0, {2}) == 4);
  CHECK(pages.free_pages() == 4);
  CHECK(drop(pages, 0, {2, 5}) == 0);  // nothing is there
  CHECK(keys(pages, 0, {4}) == std::vector<float>{14});
  put(pages, 0, {1}, 20);
  CHECK(pages.free_pages() == 3);
  CHECK(drop(pages, 0, {1, 4}) == 8);
  CHECK(pages.free_pages() == 5);
}

TEST_CASE("a page that lanes share comes back when the last of them has left it") {
  store pages({.sequences = 1, .layers = 2, .kv_heads = 2, .slots = 8, .channels = 3},
              {.page_size = 4});
  slot_list const slots{0, 1};
  for (index_t layer = 0; layer < 2; ++layer) {
    for (index_t head = 0; head < 2; ++head) pages.reserve(0, layer, head, slots);
  }
  CHECK(pages.free_pages() == 1);
  CHECK(pages.release({0, 0, 0, {}, slots}) == 0);
  CHECK(pages.release({0, 1, 1, {}, slots}) == 0);
  CHECK(pages.release({0, 0, 1, {}, slots}) == 0);
  CHECK(pages.release({0, 1, 0, {}, slots}) == 4);
}

TEST_CASE("a fork shares pages, and whoever writes first gets a copy") {
  store pages = small_store(3, 8, {.page_size = 4});
  put(pages, 0, {0, 1, 2, 3, 4}, 10);
  *pages.values(0)(0, 0, 4) = 44;
  pages.fork(0, 1);
  CHECK(pages.free_pages() == 4);
  put(pages, 1, {5}, 99);  // into the second page, which row 0 keeps as it was
  CHECK(pages.free_pages() == 3);
  CHECK(keys(pages, 1, {0, 3, 4, 5}) == std::vector<float>{10, 13, 14, 99});
  CHECK(*pages.values(0)(1, 0, 4) == 44);
  CHECK(keys(pages, 0, {4}) == std::vector<float>{14});
  put(pages, 0, {5}, 55);  // its own by now
  CHECK(pages.free_pages() == 3);
  CHECK(keys(pages, 1, {5}) == std::vector<float>{99});
  put(pages, 1, {0}, 70);  // overwritten in one row, not in the other
  CHECK(keys(pages, 0, {0, 1}) == std::vector<float>{10, 11});
  CHECK(keys(pages, 1, {0, 1}) == std::vector<float>{70, 11});
}

TEST_CASE("a shared page is not released under the other row") {
  store pages = small_store(3, 4, {.page_size = 4});
  put(pages, 0, {0, 1}, 10);
  pages.fork(0, 1);
  pages.fork(1, 2);
  CHECK(drop(pages, 0, {0, 1}) == 0);
  CHECK(drop(pages, 1, {0}) == 0);
  CHECK(keys(pages, 1, {1}) == std::vector<float>{11});
  CHECK(keys(pages, 2, {0, 1}) == std::vector<float>{10, 11});
  CHECK(drop(pages, 1, {1}) == 0);
  put(pages, 0, {0}, 30);  // a page of its own, not that of row 2
  CHECK(keys(pages, 2, {0, 1}) == std::vector<float>{10, 11});
  CHECK(drop(pages, 2, {0, 1}) == 4);
}

TEST_CASE("page lists have the form of paged_kv_t, a hole names the page of nobody") {
  store pages = small_store(3, 12, {.page_size = 4});
  put(pages, 1, {0, 1, 2, 3, 4, 9}, 0);
  put(pages, 2, {3}, 0);
  page_lists lists = pages.lists();
  CHECK(numbers(lists.indptr) == slot_list{0, 0, 3, 4});
  CHECK(numbers(lists.indices) == slot_list{1, 2, 3, 4});
  CHECK(numbers(lists.last_page_len) == slot_list{0, 2, 4});
  drop(pages, 1, {4});
  pages.fork(2, 0);
  lists = pages.lists();
  CHECK(numbers(lists.indptr) == slot_list{0, 1, 4, 5});
  CHECK(numbers(lists.indices) == slot_list{4, 1, no_page, 3, 4});
  drop(pages, 1, {9, 3});
  lists = pages.lists();
  CHECK(numbers(lists.indptr) == slot_list{0, 1, 2, 3});
  CHECK(numbers(lists.last_page_len) == slot_list{4, 3, 4});
}

TEST_CASE("compaction moves tokens down in their order and gives the emptied pages back") {
  store pages = small_store(1, 12, {.page_size = 4});
  put(pages, 0, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10);
  drop(pages, 0, {1, 2, 6, 7, 8});
  auto const moved = pages.compact(0);  // 0, 3, 4, 5, 9 are left
  REQUIRE(moved.size() == 1);
  CHECK(moved[0].layer == -1);
  CHECK(moved[0].new_slot_of == slot_list{0, -1, -1, 1, 2, 3, -1, -1, -1, 4, -1, -1});
  CHECK(keys(pages, 0, {0, 1, 2, 3, 4}) == std::vector<float>{10, 13, 14, 15, 19});
  CHECK(pages.free_pages() == 1);
  CHECK(pages.compact(0).empty());
}

TEST_CASE("compaction closes the gaps between pages without a copy") {
  store pages = small_store(1, 16, {.page_size = 4});
  put(pages, 0, {4, 5, 6, 7, 13, 14}, 10);
  auto const moved = pages.compact(0);
  REQUIRE(moved.size() == 1);
  CHECK(moved[0].new_slot_of ==
        slot_list{-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, -1, 4, 5, -1});
  CHECK(keys(pages, 0, {0, 1, 2, 3, 4, 5}) == std::vector<float>{10, 11, 12, 13, 14, 15});
  CHECK(numbers(pages.lists().indptr) == slot_list{0, 2});
}

TEST_CASE("compaction does not touch shared pages, and takes no page") {
  store pages = small_store(2, 12, {.page_size = 4, .pages = 5});
  put(pages, 0, {0, 1, 2, 3, 4, 5, 6, 7}, 10);
  pages.fork(0, 1);
  drop(pages, 1, {1, 2});
  put(pages, 1, {7}, 30);  // the second page is copied
  put(pages, 1, {8, 9}, 40);
  drop(pages, 1, {4, 5, 6});
  CHECK(pages.free_pages() == 1);
  auto const moved = pages.compact(1);  // the hole in the shared page stays
  REQUIRE(moved.size() == 1);
  CHECK(moved[0].new_slot_of == slot_list{0, -1, -1, 3, -1, -1, -1, 4, 5, 6, -1, -1});
  CHECK(keys(pages, 1, {0, 3, 4, 5, 6}) == std::vector<float>{10, 13, 30, 40, 41});
  CHECK(keys(pages, 0, {0, 1, 2, 3, 4, 5, 6, 7}) ==
        std::vector<float>{10, 11, 12, 13, 14, 15, 16, 17});
  CHECK(pages.free_pages() == 2);
}

TEST_CASE("a page that compaction empties for one lane may be filled from another one") {
  store pages({.sequences = 1, .kv_heads = 2, .slots = 6, .channels = 1}, {.page_size = 2});
  for (index_t const head : {0, 1}) {
    slot_list const slots = head == 0 ? slot_list{1, 2} : slot_list{0, 1, 4, 5};
    pages.reserve(0, 0, head, slots);
    for (index_t const slot : slots) {
      *pages.keys(0)(0, head, slot) = static_cast<float>(10 * head + slot);
    }
  }
  REQUIRE(pages.compact(0).size() == 2);  // head 0 leaves the second page, head 1 the third
  CHECK(*pages.keys(0)(0, 0, 0) == 1.0F);
  CHECK(*pages.keys(0)(0, 0, 1) == 2.0F);
  CHECK(*pages.keys(0)(0, 1, 1) == 11.0F);
  CHECK(*pages.keys(0)(0, 1, 2) == 14.0F);
  CHECK(*pages.keys(0)(0, 1, 3) == 15.0F);
  CHECK(pages.free_pages() == 1);
}

TEST_CASE("numbers that make no store, and forks onto what is there, are refused by name") {
  kv_shape const shape{.sequences = 2, .slots = 9, .channels = 1};
  CHECK(refusal([&] { store(shape, {.page_size = 0}); }).find("page_options.page_size") !=
        std::string::npos);
  CHECK(refusal([&] { store(shape, {.page_size = 4, .pages = 2}); }).find("page_options.pages") !=
        std::string::npos);
  constexpr index_t most = std::numeric_limits<index_t>::max();
  CHECK(refusal([&] { store(shape, {.page_size = most}); }) ==
        "adore: page_options.page_size = 2147483647: the slots of a row in whole pages must be "
        "fewer than 2^31 - 1");
  kv_shape const long_rows{.sequences = 1, .slots = most - 1, .channels = 1};
  CHECK(refusal([&] { store(long_rows, {.page_size = 16}); }).find("page_options.page_size") !=
        std::string::npos);
  kv_shape const many{.sequences = 1 << 16, .slots = 1 << 16, .channels = 1};
  CHECK(refusal([&] { store(many, {.page_size = 1}); }) ==
        "adore: page_options.pages = 4294967296: must be fewer than 2^31 - 1");
  CHECK(refusal([&] { store(shape, {.page_size = 4, .pages = most}); }).find("2^31 - 1") !=
        std::string::npos);
  store pages(shape, {.page_size = 4, .pages = 3});
  put(pages, 0, {0, 1, 2, 3}, 0);
  put(pages, 1, {0}, 0);
  CHECK(refusal([&] { pages.fork(0, 1); }).find("row 1 holds pages") != std::string::npos);
  CHECK_THROWS_AS(pages.reserve(1, -1, -1, slot_list{1, 4, 8}), std::length_error);
  CHECK(pages.free_pages() == 1);
  CHECK(drop(pages, 1, {0, 1}) == 4);  // slot 1 was not reserved by what failed
}

TEST_CASE("the books are as large as the scope asks, and serve one scope at a time") {
  kv_shape const shape{.sequences = 2, .layers = 4, .kv_heads = 2, .slots = 8};
  slot_list const slots{0, 1};
  page_tables tables(shape, 4, 4);
  std::size_t const empty = tables.allocated_bytes();
  CHECK(empty == 2 * 4 * sizeof(index_t));  // a page number and a count for each page of a row
  CHECK(tables.release(0, -1, -1, slots) == 0);
  CHECK_FALSE(tables.holds(0, 3, 1, 7));
  CHECK(tables.compacted(0, tables.compaction(0)).empty());
  tables.reserve(0, -1, -1, slots);
  CHECK(tables.allocated_bytes() - empty == 2 * 8);
  CHECK_THROWS_AS(tables.reserve(0, 1, -1, slots), std::logic_error);
  CHECK(tables.release(0, -1, -1, slots) == 4);
  tables.reserve(0, 1, -1, slots);
  CHECK(tables.allocated_bytes() - empty == 2 * 4 * 8);
  CHECK(tables.release(0, 1, -1, slots) == 4);
  tables.reserve(1, 3, 1, slots);
  CHECK(tables.allocated_bytes() - empty == 2 * 4 * 2 * 8);
  CHECK(tables.holds(1, 3, 1, 1));
  CHECK_FALSE(tables.holds(1, 3, 0, 1));
}

TEST_CASE("random reservations, releases, forks and compactions leave what a literal model has") {
  for (scope const reach : {scope::model, scope::layer, scope::kv_head}) {
    for (unsigned seed = 0; seed < 12; ++seed) {
      CAPTURE(seed);
      CAPTURE(std::string(word_of(reach)));
      std::mt19937 random(seed);
      auto const below = [&](index_t end) {
        return static_cast<index_t>(random() % static_cast<unsigned>(end));
      };
      index_t const page_size = 1 + below(5);
      kv_shape const asked{.sequences = 4, .layers = 2, .kv_heads = 2, .slots = 11, .channels = 3};
      index_t const row_pages = (asked.slots + page_size - 1) / page_size;
      index_t const count = row_pages + below(3 * row_pages);
      store pages(asked, {.page_size = page_size, .pages = count});
      kv_shape const shape = pages.shape();
      literal::pages model(shape, page_size, count);
      float next = 1.0F;
      auto const random_lane = [&] {
        return literal::pages::lane{reach == scope::model ? -1 : below(2),
                                    reach == scope::kv_head ? below(2) : -1};
      };
      auto const random_slots = [&](index_t most) {
        slot_list slots;
        for (index_t n = 1 + below(most); n > 0; --n) slots.push_back(below(shape.slots));
        return slots;
      };
      auto const for_heads = [&](literal::pages::lane lane, auto&& action) {
        for (index_t layer = 0; layer < shape.layers; ++layer) {
          for (index_t head = 0; head < shape.kv_heads; ++head) {
            if ((lane.first < 0 || lane.first == layer) &&
                (lane.second < 0 || lane.second == head)) {
              action(layer, head);
            }
          }
        }
      };
      int refused = 0;
      for (int n = 0; n < 400; ++n) {
        CAPTURE(n);
        index_t const row = below(shape.sequences);
        index_t const dice = below(20);
        auto const lane = random_lane();
        if (dice < 9) {
          slot_list const slots = random_slots(3);
          bool const fits = model.reserve(row, lane, slots);
          if (fits) {
            pages.reserve(row, lane.first, lane.second, slots);
            for (index_t const slot : slots) {
              model.write(row, lane, slot, next);
              for_heads(lane, [&](index_t layer, index_t head) {
                for (index_t c = 0; c < shape.channels; ++c) {
                  pages.keys(layer)(row, head, slot)[c] = next;
                  pages.values(layer)(row, head, slot)[c] = -next;
                }
              });
              ++next;
            }
          } else {
            ++refused;
            REQUIRE_THROWS_AS(pages.reserve(row, lane.first, lane.second, slots),
                              std::length_error);
          }
        } else if (dice < 16) {
          slot_list const slots = random_slots(5);
          REQUIRE(pages.release({row, lane.first, lane.second, {}, slots}) ==
                  model.release(row, lane, slots));
        } else if (dice < 18) {
          if (model.empty(row)) continue;
          for (index_t to = 0; to < shape.sequences; ++to) {
            if (!model.empty(to)) continue;
            pages.fork(row, to);
            model.fork(row, to);
            break;
          }
        } else if (dice < 19) {
          auto const goes = model.compact(row);
          std::size_t lanes_moved = 0;
          auto const moved = pages.compact(row);
          for (auto const& [of, tokens] : goes) {
            bool const here = std::any_of(tokens.begin(), tokens.end(), [](auto const& token) {
              return token.first != token.second;
            });
            lanes_moved += here ? 1 : 0;
          }
          REQUIRE(moved.size() == lanes_moved);
          for (moved_lane const& one : moved) {
            auto const& tokens = goes.at({one.layer, one.kv_head});
            for (index_t slot = 0; slot < shape.slots; ++slot) {
              auto const found = tokens.find(slot);
              REQUIRE(one.new_slot_of[static_cast<std::size_t>(slot)] ==
                      (found == tokens.end() ? -1 : found->second));
            }
          }
        } else {
          for (index_t layer = 0; layer < 2; ++layer) {
            for (index_t head = 0; head < 2; ++head) {
              literal::pages::lane const one{reach == scope::model ? -1 : layer,
                                             reach == scope::kv_head ? head : -1};
              slot_list all;
              for (index_t slot = 0; slot < shape.slots; ++slot) all.push_back(slot);
              REQUIRE(pages.release({row, one.first, one.second, {}, all}) ==
                      model.release(row, one, all));
            }
          }
          REQUIRE(model.empty(row));
        }

        REQUIRE(static_cast<std::size_t>(pages.free_pages()) == model.free());
        bool same = true;
        for (index_t r = 0; r < shape.sequences; ++r) {
          for (index_t layer = 0; layer < shape.layers; ++layer) {
            for (index_t head = 0; head < shape.kv_heads; ++head) {
              literal::pages::lane const one{reach == scope::model ? -1 : layer,
                                             reach == scope::kv_head ? head : -1};
              for (index_t slot = 0; slot < shape.slots; ++slot) {
                if (!model.holds(r, one, slot)) continue;
                float const wanted = model.value(r, layer, head, slot);
                for (index_t c = 0; c < shape.channels; ++c) {
                  same = same && pages.keys(layer)(r, head, slot)[c] == wanted &&
                         pages.values(layer)(r, head, slot)[c] == -wanted;
                }
              }
            }
          }
        }
        REQUIRE(same);
      }
      CHECK((refused > 0 || count > 2 * row_pages));
    }
  }
}

}  // namespace adore::testing
