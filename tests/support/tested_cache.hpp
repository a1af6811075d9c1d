// SPDX-License-Identifier: Apache-2.0
// A whole cache behind virtual functions, so that the tests of every policy compile each cache
// once: in every_policy_test.cpp.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/kv_view.hpp"
#include "adore/types.hpp"
#include "tables.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace adore::testing {

class tested_cache {
 public:
  virtual ~tested_cache() = default;
  tested_cache(tested_cache const&) = delete;
  tested_cache& operator=(tested_cache const&) = delete;

  virtual void open(index_t row, std::uint64_t seed) = 0;
  virtual void close(index_t row) = 0;
  virtual void fork(index_t from, index_t to) = 0;
  virtual row_snapshot snapshot(index_t row) const = 0;
  virtual void restore(index_t row, row_snapshot const& saved) = 0;
  virtual void begin_step(std::span<row_tokens const> rows) = 0;
  virtual void begin_prompt(index_t row, index_t count, std::span<index_t const> tokens) = 0;
  virtual std::vector<position_t> positions() const = 0;
  virtual void append(index_t layer, token_view<float const> k, token_view<float const> v) = 0;
  virtual void attend(index_t layer, token_view<float const> q, token_view<float> out) = 0;
  virtual void observe(index_t layer,
                       token_view<float const> weights,
                       std::span<position_t const> columns) = 0;
  virtual void end_step(std::span<index_t const> accepted = {}) = 0;
  virtual void set_budget(index_t row, index_t budget) = 0;
  virtual void reserve(index_t row, index_t tokens) = 0;

  virtual scope reach() const = 0;
  virtual kv_shape shape() const = 0;
  virtual bool is_open(index_t row) const = 0;
  virtual position_t next(index_t row) const = 0;
  virtual index_t lanes_per_row() const = 0;
  virtual index_t lane(index_t row, index_t layer, index_t kv_head) const = 0;
  virtual index_t layer_of(index_t lane) const = 0;
  virtual index_t head_of(index_t lane) const = 0;
  virtual index_t budget(index_t lane) const = 0;
  virtual position_list kept(index_t lane) const = 0;
  virtual std::span<released_token const> released() const = 0;

 protected:
  tested_cache() = default;
};

}  // namespace adore::testing
