// SPDX-License-Identifier: Apache-2.0
// The clauses of stores in pages: block boundaries, reuse of emptied pages, shared prefixes, drafts
// that are taken back.
#pragma once

#include "adore/kv_cache.hpp"
#include "adore/kv_view.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/stores/store_concepts.hpp"
#include "adore/testing/audited_store.hpp"
#include "adore/testing/page_probe.hpp"
#include "adore/types.hpp"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace adore::testing::detail {

/// A page is taken by the first slot of a block and given back with the last one.
template <class Store>
void check_blocks(Store made) {
  page_probe probe(std::move(made));
  index_t const granule = probe.granule();
  index_t const all = probe.free_pages();
  for (index_t slot = 0; slot < 2 * granule; ++slot) {
    probe.reserve(0, {slot});
    index_t const taken = all - probe.free_pages();
    index_t const blocks = slot / granule + 1;
    require(taken == blocks,
            "after slots 0 to " + text(slot) + " are reserved " + text(taken) +
                " pages are taken; with granule() = " + text(granule) + " they are " +
                text(blocks));
  }
  probe.reserve(0, {0, granule});
  require(all - probe.free_pages() == 2, "reserving a slot twice takes a page twice");
  for (index_t number = 0; number < 2; ++number) {
    for (index_t i = 0; i < granule; ++i) {
      index_t const freed = probe.release(0, {number * granule + i});
      index_t const wanted = i == granule - 1 ? granule : 0;
      require(freed == wanted,
              "release of slot " + text(i) + " of a block of " + text(granule) + " says that " +
                  text(freed) + " came free, but a page comes free with its last token");
    }
  }
  require(probe.release(0, {0, granule}) == 0, "a release of slots that hold nothing frees pages");
}

/// A row owns the slots of a block from the reservation of one of them until the last is released.
template <class Store>
void check_owned(Store made) {
  page_probe probe(std::move(made));
  index_t const granule = probe.granule();
  auto const check = [&](bool block_is_there, std::string const& when) {
    for (index_t slot = 0; slot < 2 * granule; ++slot) {
      bool const owned = probe.store().owns(0, slot);
      require(owned == (block_is_there && slot < granule),
              "owns(row 0, slot " + text(slot) + ") is " + (owned ? "true" : "false") + " " + when);
    }
  };
  check(false, "before anything is reserved");
  probe.reserve(0, {0});
  check(true, "when slot 0 is reserved");
  probe.release(0, {0});
  check(false, "after slot 0 was released");
}

/// What one row gives back another one may have at once, and the first one no longer touches it.
template <class Store>
void check_reuse(Store made) {
  page_probe probe(std::move(made));
  index_t const granule = probe.granule();
  index_t const rows = probe.store().shape().sequences;
  index_t const row_blocks = probe.store().capacity() / granule;
  index_t const last = rows - 1;
  // all rows are full but for the last block of the last one
  for (index_t row = 0; row < rows; ++row) {
    for (index_t number = 0; number < row_blocks - (row == last ? 1 : 0); ++number) {
      probe.reserve(row, probe.block(number, granule));
      probe.write(row, probe.block(number, granule), 3 * row + number);
    }
  }
  probe.release(0, probe.block(0, granule));
  auto const fresh = probe.block(row_blocks - 1, granule);
  probe.reserve(last, fresh);
  probe.write(last, fresh, 9);
  require(
      probe.release(0, probe.block(0, granule)) == 0 && probe.reads(last, fresh, 9),
      "a page that was given back and taken again in the same step is released once more by the "
      "row that had it before");
  for (index_t row = 0; row < rows; ++row) {
    for (index_t number = row == 0 ? 1 : 0; number < row_blocks - (row == last ? 1 : 0); ++number) {
      require(probe.reads(row, probe.block(number, granule), 3 * row + number),
              "block " + text(number) + " of sequence " + text(row) +
                  " has changed when an emptied page was used again");
    }
  }
}

/// After a fork two rows hold the same pages, until one writes; neither loses them by the other.
template <class Store>
void check_prefix(Store made) {
  page_probe probe(std::move(made));
  index_t const granule = probe.granule();
  index_t const all = probe.free_pages();
  auto const prefix = probe.block(0, granule);
  std::vector<index_t> const first_of_next{granule};
  probe.reserve(0, prefix);
  probe.reserve(0, first_of_next);
  probe.write(0, prefix, 1);
  probe.write(0, first_of_next, 1);
  probe.store().fork(0, 1);
  require(all - probe.free_pages() == 2,
          "fork takes " + text(all - probe.free_pages() - 2) +
              " pages, but a shared prefix is there once");
  require(probe.reads(1, prefix, 1) && probe.reads(1, first_of_next, 1),
          "after a fork the new sequence does not hold what the old one holds");

  for (index_t const row : {0, 1}) {
    require(!probe.store().owns(row, 0),
            "owns(row " + text(row) + ", slot 0) is true of a page that two sequences hold");
  }
  probe.reserve(1, first_of_next);
  probe.write(1, first_of_next, 2);
  probe.reserve(1, {0});
  probe.write(1, {0}, 2);
  require(probe.reads(0, prefix, 1) && probe.reads(0, first_of_next, 1),
          "a sequence has written into a page that another one holds");
  require(all - probe.free_pages() == 4, "a page that was written is still held by two sequences");
  require(probe.store().owns(0, 0) && probe.store().owns(1, 0),
          "owns(row, slot) is false of a page that only this row holds");
  for (index_t slot = 1; slot < granule; ++slot) {
    require(probe.reads(1, {slot}, 1),
            "the copy of a shared page lacks K or V of slot " + text(slot));
  }
  require(probe.release(1, prefix) == granule && probe.release(1, first_of_next) == granule,
          "copies of shared pages do not come free");

  probe.store().fork(0, 1);
  require(probe.release(0, prefix) == 0 && probe.release(0, first_of_next) == 0,
          "release says that pages came free which another sequence holds");
  probe.reserve(0, prefix);
  probe.reserve(0, first_of_next);
  probe.write(0, prefix, 3);
  probe.write(0, first_of_next, 3);
  require(probe.reads(1, prefix, 1) && probe.reads(1, first_of_next, 1),
          "a shared page was released, and used again, under the sequence that still holds it");
  probe.release(0, prefix);
  probe.release(0, first_of_next);
  require(probe.release(1, prefix) == granule && probe.release(1, first_of_next) == granule &&
              probe.free_pages() == all,
          "a page that no sequence holds any more is not free");
}

/// A row that holds pages is not forked over.
template <class Store>
void check_fork_onto_pages(Store made) {
  page_probe probe(std::move(made));
  for (index_t const row : {0, 1}) {
    probe.reserve(row, {0});
    probe.write(row, {0}, row);
  }
  index_t const before = probe.free_pages();
  bool refused = false;
  try {
    probe.store().fork(0, 1);
  } catch (std::exception const&) {
    refused = true;
  }
  require(refused, "fork onto a sequence that holds pages throws nothing");
  require(probe.free_pages() == before && probe.reads(0, {0}, 0) && probe.reads(1, {0}, 1),
          "a fork that was refused has changed something");
}

/// K and V are where `compact` says that they went.
template <class Store>
void check_compaction(Store made) {
  page_probe probe(std::move(made));
  std::vector<index_t> kept, left;
  for (index_t slot = 0; slot < 2 * probe.granule(); ++slot) {
    (slot % 2 == 0 ? left : kept).push_back(slot);
    probe.reserve(0, {slot});
    probe.write(0, {slot}, 1);
  }
  probe.release(0, left);
  std::vector<moved_lane> const moved = probe.store().itself().compact(0);
  require(moved.size() <= 1, "compact reports more lanes than the one that there is");
  for (index_t const slot : kept) {
    index_t const now = moved.empty() ? slot : moved[0].new_slot_of[static_cast<std::size_t>(slot)];
    bool const there = now >= 0 && now < probe.store().shape().slots;
    require(there && probe.reads(0, now, slot, 1),
            "compact reports that the token of slot " + text(slot) + " is in slot " + text(now) +
                " now, but its K and V are not");
  }
}

/// A draft's pages come back when it is rejected, and what was there before it stays.
template <class Store>
void check_rollback(Store made) {
  kv_shape const shape = made.shape();
  index_t const draft = made.granule() + 1;
  index_t const count = shape.kv_heads * shape.channels;
  auto options = options_of<keep_all, Store>(shape);
  options.reach = Store::finest_scope;
  options.max_new = draft;
  kv_cache cache(audited_store<Store>(std::move(made)), keep_all{}, options);
  auto const step = [&](index_t tokens, index_t accepted) {
    cache.begin_step(row_tokens{.row = 0, .count = tokens});
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      auto const kv = random_floats(static_cast<std::uint32_t>(layer), tokens * count);
      token_view<float const> const view(kv.data(), tokens, shape.kv_heads, shape.channels);
      cache.append(layer, view, view);
    }
    cache.end_step(accepted);
  };
  auto const numbers = [&] {
    std::vector<float> all;
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      for (auto const view :
           {kv_view_of(cache.store().keys(layer)), kv_view_of(cache.store().values(layer))}) {
        for (index_t head = 0; head < shape.kv_heads; ++head) {
          for (index_t c = 0; c < shape.channels; ++c) {
            all.push_back(static_cast<float>(view(0, head, 0)[c * view.channel_stride]));
          }
        }
      }
    }
    return all;
  };
  cache.open(0);
  step(1, 1);  // in slot 0
  index_t const before = cache.store().free_pages();
  auto const first = numbers();
  step(draft - 1, 0);
  step(draft, 0);
  require(cache.store().free_pages() == before,
          "after a draft was rejected " + text(before - cache.store().free_pages()) +
              " of its pages are not free");
  require(numbers() == first, "a rejected draft has changed K or V of the token before it");
  cache.close(0);
}

/// The clauses of a store in pages, see `check_store`.
template <class MakeStore>
void check_pages(MakeStore& make_store, kv_shape const& shape) {
  check_blocks(make_store(shape));
  check_owned(make_store(shape));
  check_reuse(make_store(shape));
  if (shape.sequences > 1) {
    check_prefix(make_store(shape));
    check_fork_onto_pages(make_store(shape));
  }
  check_rollback(make_store(shape));
  if constexpr (compacting_store<std::invoke_result_t<MakeStore&, kv_shape const&>>) {
    check_compaction(make_store(shape));
  }
}

}  // namespace adore::testing::detail
