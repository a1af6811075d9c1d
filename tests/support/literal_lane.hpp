// SPDX-License-Identifier: Apache-2.0
// One kept set (a lane) under one policy, by sets and sorting only: what a step, a prompt, a change
// of the budget release. Written from the specification alone; it shares no code with the library.
#pragma once

#include "literal_order.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace literal {

enum class role { ordinary, open, close };  // open, close: the sentinels <CL>, <CR>

/// What a new token brings besides the attention it receives; each policy reads what it needs.
struct token {
  float key_norm = 0.0F;
  float score = 0.0F;  // a controller's logit
  role kind = role::ordinary;
};

struct facts {
  int newest = -1;  // -1: no token yet
  int budget = unbounded;
  std::uint64_t seed = 0;
};

/// One policy with its own state for one lane.
class rule {
 public:
  virtual ~rule() = default;
  virtual std::unique_ptr<rule> clone() const = 0;

  virtual int budget() const = 0;  // of a lane that has just been opened
  virtual int protected_first() const { return 0; }
  virtual int protected_newest() const { return 0; }
  virtual float priority(int position, facts const& now) const = 0;

  virtual void arrive(int /*position*/, token const& /*what*/) {}
  virtual float query_weight(int /*later*/) const { return 1.0F; }  // `later` queries follow it
  /// `sum` = sum over the call's committed queries of query_weight x weight; once per call.
  virtual void observe(int /*position*/, float /*sum*/, int /*queries*/, facts const& /*now*/) {}
  virtual void forget(int /*position*/) {}

  virtual void begin_prompt() {}
  virtual void prompt_observed(int /*tokens*/) {}  // between the observations and the selection
  virtual void end_prompt() {}
  virtual bool evicts() const { return true; }
  /// `candidates`: unprotected tokens, ascending, one of which is about to leave.
  virtual void before_victim(std::vector<int> const& /*candidates*/) {}
  /// Rank of the victim among the ascending candidates, for policies that do not rank by priority.
  virtual std::optional<std::size_t> chosen_rank(facts const&,
                                                 std::size_t /*candidates*/,
                                                 int /*evicted*/) const {
    return std::nullopt;
  }

 protected:
  rule() = default;
  rule(rule const&) = default;
  rule& operator=(rule const&) = default;
};

template <class Self>
class rule_of : public rule {
 public:
  std::unique_ptr<rule> clone() const override {
    return std::make_unique<Self>(static_cast<Self const&>(*this));
  }
};

struct lane_options {
  tie ties = tie::evict_oldest;
  int granule = 1;  // > 1: tokens leave by whole blocks of positions [b*granule, (b+1)*granule)
};

struct release {
  int position;
  float priority;  // at the moment of the release
};

/// Copying a lane is a fork.
class lane {
 public:
  template <class Rule>
    requires std::is_base_of_v<rule, Rule>
  explicit lane(Rule const& policy, lane_options options = {})
      : fresh_(policy.clone()), rule_(policy.clone()), options_(options) {
    if (options.granule < 1) throw std::invalid_argument("granule must be at least 1");
    now_.budget = policy.budget();
  }
  lane(lane const& other)
      : fresh_(other.fresh_->clone()),
        rule_(other.rule_->clone()),
        options_(other.options_),
        now_(other.now_),
        kept_(other.kept_) {}
  lane& operator=(lane const& other) { return *this = lane(other); }
  lane(lane&&) = default;
  lane& operator=(lane&&) = default;
  ~lane() = default;

  void open(std::uint64_t seed) {
    rule_ = fresh_->clone();
    kept_.clear();
    now_ = facts{-1, rule_->budget(), seed};
  }

  /// rows.size() new tokens at newest+1, newest+2, ...; rows[i] is the attention of the i-th over
  /// kept and new tokens up to itself. Only the first `accepted` are committed. `tokens` is empty
  /// or has one entry per row. Returns what was released, in order.
  std::vector<release> step(std::vector<row> const& rows,
                            int accepted,
                            std::vector<token> const& tokens = {}) {
    commit(rows, accepted, tokens);
    return select();
  }
  std::vector<release> step(std::vector<row> const& rows) {
    return step(rows, static_cast<int>(rows.size()));
  }

  /// Dense prompt of n tokens on an empty lane, then one selection (`full_then_select`).
  std::vector<release> prompt(int n,
                              std::vector<row> const& rows,
                              std::vector<token> const& tokens = {}) {
    if (now_.newest != -1) throw std::logic_error("prompt() needs an empty lane");
    if (rows.size() != static_cast<std::size_t>(n)) throw std::invalid_argument("rows");
    rule_->begin_prompt();
    commit(rows, n, tokens);
    rule_->prompt_observed(n);
    auto released = select();
    rule_->end_prompt();
    return released;
  }

  /// Shrinking evicts at once by the same rule; growing has no effect on the past.
  std::vector<release> set_budget(int budget) {
    if (budget < 0) throw std::invalid_argument("budget");
    now_.budget = budget;
    return select();
  }

  /// Make room for k tokens (StreamingLLM): keep the sinks and the newest max(0, m - s - k) others.
  std::vector<release> reserve(int k) {
    int const first = rule_->protected_first();
    std::vector<int> others;
    for (int const p : kept_) {
      if (p >= first) others.push_back(p);
    }
    auto const room = static_cast<std::size_t>(std::max(0, now_.budget - first - k));
    std::vector<release> released;
    for (std::size_t i = 0; i + room < others.size(); ++i) drop(others[i], released);
    return released;
  }

  std::vector<int> kept() const { return {kept_.begin(), kept_.end()}; }
  int newest() const { return now_.newest; }
  int budget() const { return now_.budget; }
  float priority(int position) const { return rule_->priority(position, now_); }
  std::map<int, float> priorities() const {
    std::map<int, float> all;
    for (int const p : kept_) all[p] = priority(p);
    return all;
  }
  template <class Rule>
  Rule const& policy() const {
    return dynamic_cast<Rule const&>(*rule_);
  }

 private:
  void commit(std::vector<row> const& rows, int accepted, std::vector<token> const& tokens) {
    auto const count = static_cast<int>(rows.size());
    if (accepted < 0 || accepted > count) throw std::invalid_argument("accepted");
    if (!tokens.empty() && tokens.size() != rows.size()) throw std::invalid_argument("tokens");
    for (int i = 0; i < count; ++i) {
      for (auto const& [key, weight] : rows[static_cast<std::size_t>(i)]) {
        bool const is_new = key > now_.newest && key <= now_.newest + 1 + i;
        if (!is_new && !kept_.contains(key)) throw std::invalid_argument("a row attends a hole");
      }
    }
    for (int i = 0; i < accepted; ++i) {
      kept_.insert(++now_.newest);
      rule_->arrive(now_.newest, tokens.empty() ? token{} : tokens[static_cast<std::size_t>(i)]);
    }
    if (accepted == 0) return;
    for (int const p : kept_) {
      float sum = 0.0F;
      for (int i = 0; i < accepted; ++i) {
        auto const found = rows[static_cast<std::size_t>(i)].find(p);
        if (found == rows[static_cast<std::size_t>(i)].end()) continue;
        sum += rule_->query_weight(accepted - 1 - i) * found->second;
      }
      rule_->observe(p, sum, accepted, now_);
    }
  }

  bool is_first(int p) const { return p < rule_->protected_first(); }
  bool is_newest(int p) const { return p > now_.newest - rule_->protected_newest(); }
  bool is_protected(int p) const { return is_first(p) || is_newest(p); }

  std::vector<release> select() {
    std::vector<release> released;
    if (!rule_->evicts()) return released;
    while (kept_.size() > static_cast<std::size_t>(now_.budget)) {
      auto const block = options_.granule > 1 ? lowest_block() : std::vector<int>{};
      if (block.empty()) drop(victim(static_cast<int>(released.size())), released);
      for (int const p : block) drop(p, released);
    }
    // keep_never below budget. With blocks, only a block that is keep_never as a whole leaves.
    if (options_.granule > 1) {
      for (auto block = lowest_block(keep_never); !block.empty(); block = lowest_block(keep_never))
        for (int const p : block) drop(p, released);
    } else {
      for (int const p : kept()) {
        if (!is_protected(p) && priority(p) == keep_never) drop(p, released);
      }
    }
    return released;
  }

  void drop(int position, std::vector<release>& released) {
    released.push_back({position, priority(position)});
    kept_.erase(position);
    rule_->forget(position);
  }

  /// The unprotected token that is lowest in the order. With protected ones only, the newest lose
  /// before the first, the oldest of each group first, whatever the priorities and the tie rule;
  /// a token in both groups counts as one of the first.
  int victim(int evicted) {
    std::vector<int> candidates;
    std::vector<int> newest;
    std::vector<int> first;
    for (int const p : kept_)
      (is_first(p) ? first : is_newest(p) ? newest : candidates).push_back(p);
    if (candidates.empty()) return newest.empty() ? first.front() : newest.front();
    rule_->before_victim(candidates);
    if (auto const rank = rule_->chosen_rank(now_, candidates.size(), evicted)) {
      return candidates.at(*rank);
    }
    int lowest = candidates.front();
    for (int const p : candidates) {
      if (leaves_before(priority(p), p, priority(lowest), lowest, options_.ties)) lowest = p;
    }
    return lowest;
  }

  /// Kept tokens of the lowest candidate block, ascending; empty if there is none. A candidate is
  /// complete, has a kept token and no protected one; its priority is its tokens' maximum.
  /// With `exactly`, only blocks of that priority count.
  std::vector<int> lowest_block(std::optional<float> exactly = std::nullopt) const {
    std::map<int, std::vector<int>> blocks;
    for (int const p : kept_) blocks[p / options_.granule].push_back(p);
    std::optional<int> lowest;
    float lowest_priority = 0.0F;
    for (auto const& [block, members] : blocks) {
      bool candidate = (block + 1) * options_.granule - 1 <= now_.newest;
      float highest = priority(members.front());
      for (int const p : members) {
        if (is_protected(p)) candidate = false;
        if (is_lower(highest, priority(p))) highest = priority(p);
      }
      if (!candidate || (exactly && highest != *exactly)) continue;
      if (!lowest || leaves_before(highest, block, lowest_priority, *lowest, options_.ties)) {
        lowest = block;
        lowest_priority = highest;
      }
    }
    return lowest ? blocks.at(*lowest) : std::vector<int>{};
  }

  std::unique_ptr<rule> fresh_;
  std::unique_ptr<rule> rule_;
  lane_options options_;
  facts now_;
  std::set<int> kept_;
};

}  // namespace literal
