// SPDX-License-Identifier: Apache-2.0
// A cache whose policy is chosen at run time: one virtual call per layer and stage, never per slot.
#pragma once

#include "adore/cache_options.hpp"
#include "adore/kv_cache.hpp"
#include "adore/policy_text.hpp"
#include "adore/stores/host_store.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace adore {

/// The facade's events (see `kv_cache`) without its types.
class any_cache {
 public:
  using watcher = std::function<void(attention_record const&)>;

  virtual ~any_cache() = default;
  any_cache(any_cache const&) = delete;  // it is held by pointer, copies are made by `fork`
  any_cache& operator=(any_cache const&) = delete;
  any_cache(any_cache&&) = delete;
  any_cache& operator=(any_cache&&) = delete;

  virtual std::string policy() const = 0;  ///< "name(field=value,...)"
  virtual index_t nominal_budget() const = 0;
  virtual scope reach() const = 0;
  virtual position_scheme scheme() const = 0;
  virtual kv_shape shape() const = 0;
  virtual bool takes_scores() const = 0;  ///< of a controller

  virtual void open(index_t row, std::uint64_t seed) = 0;
  virtual void close(index_t row) = 0;
  virtual void fork(index_t from, index_t to) = 0;
  virtual row_snapshot snapshot(index_t row) const = 0;
  virtual void restore(index_t row, row_snapshot const& saved) = 0;

  virtual void begin_step(std::span<row_tokens const> rows) = 0;
  virtual void begin_prompt(row_tokens const& whole) = 0;
  virtual std::span<rebuilt_token const> rebuilt() const = 0;
  virtual std::span<position_t const> positions() const = 0;
  virtual void append(index_t layer, token_view<float const> k, token_view<float const> v) = 0;
  /// @param watch  may be empty
  virtual void attend(index_t layer,
                      token_view<float const> q,
                      token_view<float> out,
                      watcher const& watch) = 0;
  virtual void observe(index_t layer,
                       token_view<float const> weights,
                       std::span<position_t const> columns) = 0;
  virtual void end_step(std::span<index_t const> accepted) = 0;

  virtual void set_budget(index_t row, index_t budget) = 0;
  virtual void reserve(index_t row, index_t tokens) = 0;
  virtual std::vector<position_t> kept(index_t row, index_t layer, index_t kv_head) const = 0;
  virtual std::vector<position_t> back(index_t row) const = 0;
  virtual std::size_t allocated_bytes() const = 0;
  /// Bytes of K and V of the tokens that are kept now.
  virtual std::size_t live_bytes() const = 0;
  virtual rebuild_counts rebuild_cost() const = 0;
  virtual std::size_t tier_bytes() const = 0;

 protected:
  any_cache() = default;
};

namespace detail {

template <class T, described P>
class cache_of final : public any_cache {
 public:
  cache_of(kv_shape const& shape, P const& policy, cache_options const& options)
      : cache_(host_store<T>(shape), policy, options) {}

  std::string policy() const override { return to_text(cache_.policy()); }
  index_t nominal_budget() const override { return nominal_budget_of(cache_.policy()); }
  scope reach() const override { return cache_.reach(); }
  position_scheme scheme() const override { return cache_.scheme(); }
  kv_shape shape() const override { return cache_.books().shape(); }
  bool takes_scores() const override { return scores_tokens<P>; }

  void open(index_t row, std::uint64_t seed) override { cache_.open(row, seed); }
  void close(index_t row) override { cache_.close(row); }
  void fork(index_t from, index_t to) override { cache_.fork(from, to); }
  row_snapshot snapshot(index_t row) const override { return cache_.snapshot(row); }
  void restore(index_t row, row_snapshot const& saved) override { cache_.restore(row, saved); }

  void begin_step(std::span<row_tokens const> rows) override { cache_.begin_step(rows); }
  void begin_prompt(row_tokens const& whole) override { cache_.begin_prompt(whole); }
  std::span<rebuilt_token const> rebuilt() const override { return cache_.rebuilt(); }
  std::span<position_t const> positions() const override { return cache_.positions(); }
  void append(index_t layer, token_view<float const> k, token_view<float const> v) override {
    cache_.append(layer, k, v);
  }
  void attend(index_t layer,
              token_view<float const> q,
              token_view<float> out,
              watcher const& watch) override {
    cache_.attend(layer, q, out, [&](attention_record const& record) {
      if (watch) watch(record);
    });
  }
  void observe(index_t layer,
               token_view<float const> weights,
               std::span<position_t const> columns) override {
    cache_.observe(layer, weights, columns);
  }
  void end_step(std::span<index_t const> accepted) override { cache_.end_step(accepted); }

  void set_budget(index_t row, index_t budget) override { cache_.set_budget(row, budget); }
  void reserve(index_t row, index_t tokens) override { cache_.reserve(row, tokens); }
  std::vector<position_t> kept(index_t row, index_t layer, index_t kv_head) const override {
    return cache_.kept(row, layer, kv_head);
  }
  std::vector<position_t> back(index_t row) const override { return cache_.back(row); }
  std::size_t allocated_bytes() const override { return cache_.store().allocated_bytes(); }
  std::size_t live_bytes() const override {
    ledger<P> const& books = cache_.books();
    kv_shape const& shape = books.shape();
    // how many [layer, kv_head] pairs share a lane
    std::size_t const shared = static_cast<std::size_t>(shape.layers * shape.kv_heads) /
                               static_cast<std::size_t>(books.lanes_per_row());
    std::size_t tokens = 0;
    for (index_t lane = 0; lane < shape.sequences * books.lanes_per_row(); ++lane) {
      tokens += static_cast<std::size_t>(books.occupied(lane));
    }
    return tokens * shared * static_cast<std::size_t>(shape.channels) * 2 * sizeof(T);
  }

  rebuild_counts rebuild_cost() const override { return cache_.rebuild_cost(); }
  std::size_t tier_bytes() const override { return cache_.tier_bytes(); }

 private:
  kv_cache<host_store<T>, P> cache_;
};

}  // namespace detail

/// What a cache made from text is to hold.
struct cache_request {
  index_t rows = 1, layers = 1, kv_heads = 1, channels = 1;
  index_t tokens = 1;  ///< longest sequence, which an unbounded policy needs slots for
  index_t prompt = 0;  ///< dense prompt at its beginning, 0: none
  std::optional<index_t> budget{};
};

/// Slots per lane that a policy needs for such a sequence.
template <eviction_policy P>
constexpr index_t slots_for(P const& policy, cache_request const& request, index_t max_new) {
  index_t kept = policy.budget();
  if constexpr (budgets_prompt<P>) {
    if (kept == unbounded && request.prompt > policy.prompt_budget()) {
      kept = policy.prompt_budget() + request.tokens - request.prompt;
    } else if (kept == unbounded) {
      kept = request.tokens > policy.prompt_budget() ? request.tokens : policy.prompt_budget();
    }
  }
  return (kept == unbounded ? request.tokens : kept) + max_new;
}

/// A cache in host memory for the policy that `text` names, with as many slots as it needs.
///
/// Compiles a cache for each policy in the list: call it in one source file of a program.
///
/// @tparam T  element type of K and V
/// @throws std::invalid_argument as `policy_of` and `kv_cache`
template <class T = float>
std::unique_ptr<any_cache> make_cache(std::string_view text,
                                      cache_request const& request,
                                      cache_options const& options = {}) {
  std::unique_ptr<any_cache> cache;
  with_policy(text, request.budget, [&](auto const& policy) {
    using P = std::remove_cvref_t<decltype(policy)>;
    kv_shape const shape{request.rows,
                         request.layers,
                         request.kv_heads,
                         slots_for(policy, request, options.max_new + options.rebuild.count),
                         request.channels};
    cache = std::make_unique<detail::cache_of<T, P>>(shape, policy, options);
  });
  return cache;
}

}  // namespace adore
