// SPDX-License-Identifier: Apache-2.0
// Stores in pages keep the contract, and those with one fault each are named by their fault.
#include "adore/stores/paged_store.hpp"
#include "adore/testing/store_contract.hpp"
#include "testing/faulty_pages.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

using adore::index_t;
using adore::kv_shape;
using adore::testing::check_scarce_pages;
using adore::testing::check_store;
using adore::testing::contract_violation;
using adore::testing::faulty_pages;
using adore::testing::page_fault;

namespace {

/// What check_store says about a store with this fault, empty if nothing.
std::string complaint_about(page_fault bug) {
  try {
    check_store([bug](kv_shape const& shape) { return faulty_pages(shape, bug); });
  } catch (contract_violation const& broken) {
    return broken.what();
  }
  return "";
}
void check_names(page_fault bug, std::string const& part) {
  std::string const text = complaint_about(bug);
  CAPTURE(text);
  CAPTURE(part);
  CHECK(text.find(part) != std::string::npos);
}

auto pages_of(adore::page_options const& how) {
  return [how](kv_shape const& shape) { return adore::paged_store<float>(shape, how); };
}

}  // namespace

TEST_CASE("store contract: paged_store keeps it with pages of any size") {
  for (index_t const page_size : {1, 2, 3, 7, 12}) check_store(pages_of({.page_size = page_size}));
  check_store(pages_of({.page_size = 4, .pages = 40}));
  check_store(
      [](kv_shape const& shape) { return adore::paged_store<_Float16>(shape, {.page_size = 8}); });
  check_store(pages_of({.page_size = 16}), {.shape = {1, 1, 3, 70, 33}, .steps = 80});
  check_store([](kv_shape const& shape) { return faulty_pages(shape, page_fault::none); });
}

TEST_CASE("store contract: pages that are no blocks of granule() slots are named") {
  check_names(page_fault::blocks_of_another_size,
              "after slots 0 to 4 are reserved 1 pages are taken; with granule() = 4 they are 2");
  check_names(page_fault::takes_a_page_twice, "reserving a slot twice takes a page twice");
  check_names(page_fault::comes_free_with_its_first_token,
              "release of slot 0 of a block of 4 says that 4 came free");
  check_names(page_fault::never_comes_free, "a page comes free with its last token");
  check_names(page_fault::counts_tokens,
              "says that 1 came free, but of free pages there are 0 more");
  check_names(page_fault::too_few_pages, "there are too few pages for all rows at once");
}

TEST_CASE("store contract: a page that is released once more after it was used again is named") {
  check_names(page_fault::gives_back_what_another_has, "is released once more");
}

TEST_CASE("store contract: a prefix that is not shared, or is lost or overwritten, is named") {
  check_names(page_fault::copies_at_once, "a shared prefix is there once");
  check_names(page_fault::forks_nothing, "does not hold what the old one holds");
  check_names(page_fault::writes_through, "has written into a page that another one holds");
  check_names(page_fault::forgets_the_copy, "the copy of a shared page lacks K or V of slot 1");
  check_names(page_fault::copies_keys_only, "the copy of a shared page lacks K or V of slot 1");
  check_names(page_fault::frees_under_the_other, "which another sequence holds");
  check_names(page_fault::clears_shared_slots, "under the sequence that still holds it");
  check_names(page_fault::owns_what_it_shares, "owns(row 0, slot 0) is true");
  check_names(page_fault::keeps_copies, "is still held by two sequences");
}

TEST_CASE("store contract: a rejected draft that leaves something behind is named") {
  check_names(page_fault::keeps_rejected_drafts, "after a draft was rejected 1 of its pages");
  check_names(page_fault::a_draft_leaves_a_trace, "a rejected draft has changed K or V");
}

TEST_CASE("store contract: slots that a row owns before or after it has them are named") {
  check_names(page_fault::owns_what_it_lacks,
              "owns(row 0, slot 0) is true before anything is reserved");
}

TEST_CASE("store contract: a fork over pages, and moves that are not reported, are named") {
  check_names(page_fault::forks_over_pages, "fork onto a sequence that holds pages throws nothing");
  check_names(page_fault::moves_in_silence,
              "compact reports that the token of slot 1 is in slot 1 now, but its K and V are not");
}

TEST_CASE("store contract: a store that runs out of pages refuses and changes nothing") {
  auto const check = [](page_fault bug) {
    check_scarce_pages([bug](kv_shape const& shape) { return faulty_pages(shape, bug); });
  };
  check(page_fault::too_few_pages);
  check_scarce_pages(pages_of({.page_size = 4, .pages = 6}));  // of one row
  check_scarce_pages(pages_of({.page_size = 3, .pages = 15}));
  CHECK_THROWS_WITH_AS(check(page_fault::reserves_what_it_can),
                       "adore: store contract: reserve of 6 pages of which 5 are free throws, but "
                       "has taken 5",
                       contract_violation);
  CHECK_THROWS_WITH_AS(check(page_fault::refuses_in_other_words),
                       "adore: store contract: reserve of 6 pages of which 5 are free throws "
                       "something else than std::length_error",
                       contract_violation);
  CHECK_THROWS_AS(check(page_fault::none), std::invalid_argument);  // they do not run out
}

TEST_CASE("store contract: pages too large for the test are refused") {
  CHECK_THROWS_AS(check_store(pages_of({.page_size = 24})), std::invalid_argument);
}
