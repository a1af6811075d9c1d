// SPDX-License-Identifier: Apache-2.0
// The clause of stores in pages that is seen only when pages run out.
#pragma once

#include "adore/invalid_field.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/testing/page_probe.hpp"
#include "adore/types.hpp"

#include <stdexcept>
#include <string>
#include <type_traits>

namespace adore::testing {

/// Checks what a store in pages does when they run out, which `check_store` never lets it come to:
/// `reserve` throws std::length_error, and nothing has changed.
///
/// @param make_store  as for `check_store`, with fewer pages than all rows can fill
/// @throws contract_violation naming the broken clause
template <class MakeStore>
  requires paging_store<std::invoke_result_t<MakeStore&, kv_shape const&>>
void check_scarce_pages(MakeStore make_store, contract_setup const& setup = {}) {
  detail::page_probe probe(make_store(setup.shape));
  index_t const row_blocks = probe.store().capacity() / probe.granule();
  index_t const last = setup.shape.sequences - 1;
  require_field(probe.free_pages() < setup.shape.sequences * row_blocks && row_blocks > 1,
                "free_pages()",
                probe.free_pages(),
                "must be fewer than all rows can fill, and a row must have two");
  for (index_t n = 0; n < last * row_blocks && probe.free_pages() > 1; ++n) {
    auto const block = probe.block(n % row_blocks, probe.granule());
    probe.reserve(n / row_blocks, block);
    probe.write(n / row_blocks, block, n);
  }
  index_t const before = probe.free_pages();
  auto const row = probe.block(0, probe.store().capacity());
  std::string const what = "reserve of " + detail::text(row_blocks) + " pages of which " +
                           detail::text(before) + " are free ";
  bool refused = false;
  try {
    probe.reserve(last, row);
  } catch (std::length_error const&) {
    refused = true;
  } catch (...) {
    throw contract_violation(what + "throws something else than std::length_error");
  }
  detail::require(refused, what + "throws nothing");
  detail::require(probe.free_pages() == before,
                  what + "throws, but has taken " + detail::text(before - probe.free_pages()));
  detail::require(probe.release(last, row) == 0, what + "throws, but has reserved slots");
}

}  // namespace adore::testing
