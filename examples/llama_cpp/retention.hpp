// SPDX-License-Identifier: Apache-2.0
// The cache of one sequence of llama.cpp under a policy that is chosen at run time: one virtual
// call per layer and stage, never per cell.
#pragma once

#include "llama_cpp/llama_store.hpp"
#include <adore/cache_options.hpp>
#include <adore/kv_view.hpp>
#include <adore/types.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama_cpp_example {

/// What is known of a policy before there is a model.
struct policy_facts {
  std::string text;  ///< "name(field=value,...)"
  adore::index_t budget = adore::unbounded;
  bool observes = false;         ///< needs attention weights
  bool last_query_only = false;  ///< ... of the last query, so that none may be left out
  bool takes_scores = false;     ///< ranks by a controller's scores
  bool guards_newest = false;    ///< it might release the newest token, which is not allowed here
  adore::scope default_scope = adore::scope::model;
  adore::position_scheme default_positions = adore::position_scheme::original;
};

/// @param budget  see `adore::policy_of`
/// @throws std::invalid_argument as `adore::policy_of`, and with the reason if a policy cannot be
///         carried out through llama.h
policy_facts facts_of(std::string_view policy, std::optional<adore::index_t> budget);

/// One sequence's books and its cells. Scope model: a cell holds a token for all layers and heads.
/// The newest token always stays, since llama_decode takes only the position after the largest one
/// that is there.
class retention {
 public:
  virtual ~retention() = default;
  retention(retention const&) = delete;
  retention& operator=(retention const&) = delete;
  retention(retention&&) = delete;
  retention& operator=(retention&&) = delete;

  /// @param row  the step's tokens, with their ids if released ones come back
  virtual void begin_step(adore::row_tokens const& row) = 0;
  /// Released tokens to decode again with the step's own, ascending.
  virtual std::span<adore::rebuilt_token const> rebuilt() const = 0;
  /// The step's j-th token goes to a cell.
  virtual void placed(adore::index_t j, adore::index_t cell) = 0;
  /// @param weights  [token, 1, cell]; no cells: this step's weights are not read
  virtual void observe(adore::index_t layer, adore::token_view<float const> weights) = 0;
  /// @return how many tokens were released
  virtual std::size_t end_step() = 0;

  virtual llama_store& store() = 0;
  virtual adore::position_t next_position() const = 0;
  virtual std::vector<adore::position_t> kept() const = 0;  ///< ascending

 protected:
  retention() = default;
};

/// @param context    its sequence 0 is the row; those behind it are for tokens that come back
/// @param most_new   tokens that a step may bring
/// @param rebuild    released tokens that come back, for a step
/// @throws std::invalid_argument as `facts_of` and `adore::kv_cache`
std::unique_ptr<retention> make_retention(std::string_view policy,
                                          std::optional<adore::index_t> budget,
                                          llama_context* context,
                                          adore::index_t most_new,
                                          std::uint64_t seed,
                                          adore::rebuild_options const& rebuild = {});

}  // namespace llama_cpp_example
