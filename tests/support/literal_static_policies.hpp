// SPDX-License-Identifier: Apache-2.0
// Policies that never look at attention: by position, by key norm, by a given score, at random.
#pragma once

#include "literal_lane.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace literal {

class keep_all : public rule_of<keep_all> {
 public:
  int budget() const override { return unbounded; }
  float priority(int, facts const&) const override { return 0.0F; }
};

class sliding_window : public rule_of<sliding_window> {
 public:
  explicit sliding_window(int size) : size_(size) {
    if (size < 0) throw std::invalid_argument("size");
  }
  int budget() const override { return size_; }
  float priority(int position, facts const&) const override { return static_cast<float>(position); }

 private:
  int size_;
};

/// The absolute grid {j : j = phase (mod interval)} and the newest `window`.
class strided : public rule_of<strided> {
 public:
  enum class bound { none, drop_oldest_grid, double_stride };

  strided(
      int interval, int window, int phase = 0, bound limit = bound::none, int budget = unbounded)
      : interval_(interval), window_(window), phase_(phase), limit_(limit), budget_(budget) {
    if (interval < 1) throw std::invalid_argument("interval");
    if (window < 1) throw std::invalid_argument("window");
    if (limit != bound::none && window >= budget) throw std::invalid_argument("window");
  }
  int budget() const override { return limit_ == bound::none ? unbounded : budget_; }
  int protected_newest() const override { return window_; }
  bool on_grid(int position) const { return (position - phase_) % interval_ == 0; }
  long long interval() const { return interval_; }

  /// Unbounded: an off-grid token dies when it leaves the window. Bounded ("both are lazy: nothing
  /// is dropped while at most m entries are kept"): off-grid tokens go first, each class by age.
  float priority(int position, facts const&) const override {
    if (on_grid(position)) return 1.0F;
    return limit_ == bound::none ? keep_never : 0.0F;
  }

  /// "if there is none, set c <- 2c ... and go on until one is dropped". The token at `phase`
  /// itself is on every grid: alone it leaves without a doubling (after a shrink to at most
  /// `window`).
  void before_victim(std::vector<int> const& candidates) override {
    if (limit_ != bound::double_stride) return;
    bool some_can_fall_off = false;
    for (int const p : candidates) some_can_fall_off |= p != phase_;
    while (some_can_fall_off && all_on_grid(candidates)) interval_ *= 2;
  }

 private:
  bool all_on_grid(std::vector<int> const& positions) const {
    for (int const p : positions) {
      if (!on_grid(p)) return false;
    }
    return true;
  }
  long long interval_;
  int window_;
  int phase_;
  bound limit_;
  int budget_;
};

/// m = sinks + window; lane::reserve(k) makes room for a turn. m < sinks + 1 throws, or with
/// `clamp_sinks` makes the sinks m - 1 (and so the window 1).
class streaming_llm : public rule_of<streaming_llm> {
 public:
  streaming_llm(int sinks, int window, bool clamp_sinks = false) : sinks_(sinks), window_(window) {
    if (sinks < 0 || window < 0) throw std::invalid_argument("sinks or window");
    if (window >= 1) return;
    if (!clamp_sinks || sinks == 0) throw std::invalid_argument("sinks must be < capacity");
    sinks_ = sinks - 1;
    window_ = 1;
  }
  int budget() const override { return sinks_ + window_; }
  int protected_first() const override { return sinks_; }
  int protected_newest() const override { return window_; }
  float priority(int position, facts const&) const override { return static_cast<float>(position); }

 private:
  int sinks_;
  int window_;
};

/// Evicts the largest norm.
class key_norm : public rule_of<key_norm> {
 public:
  explicit key_norm(int budget, int recent = 0) : budget_(budget), recent_(recent) {
    if (budget < 0) throw std::invalid_argument("budget");
    if (recent < 0 || recent > budget) throw std::invalid_argument("recent");
  }
  int budget() const override { return budget_; }
  int protected_newest() const override { return recent_; }
  void arrive(int position, token const& what) override { norm_[position] = what.key_norm; }
  void forget(int position) override { norm_.erase(position); }
  float priority(int position, facts const&) const override { return -norm_.at(position); }

 private:
  int budget_;
  int recent_;
  std::map<int, float> norm_;
};

/// ADORE's release with static scores: a controller's logit per token. Sinks count inside m.
class adaptive_release : public rule_of<adaptive_release> {
 public:
  adaptive_release(int budget, int recent, int sinks)
      : budget_(budget), recent_(recent), sinks_(sinks) {
    if (recent < 0 || sinks < 0 || sinks + recent > budget) throw std::invalid_argument("recent");
  }
  int budget() const override { return budget_; }
  int protected_first() const override { return sinks_; }
  int protected_newest() const override { return recent_; }
  void arrive(int position, token const& what) override { score_[position] = what.score; }
  void forget(int position) override { score_.erase(position); }
  float priority(int position, facts const&) const override { return score_.at(position); }

 private:
  int budget_;
  int recent_;
  int sinks_;
  std::map<int, float> score_;
};

/// A random priority per token, drawn once by the function that is handed in.
class reservoir : public rule_of<reservoir> {
 public:
  using draw = std::function<float(std::uint64_t seed, int position)>;
  reservoir(int budget, draw priority) : budget_(budget), draw_(std::move(priority)) {}
  int budget() const override { return budget_; }
  float priority(int position, facts const& now) const override {
    return draw_(now.seed, position);
  }

 private:
  int budget_;
  draw draw_;
};

/// A random victim per eviction: its rank among the ascending candidates comes from the function.
class uniform_victim : public rule_of<uniform_victim> {
 public:
  using draw = std::function<std::size_t(
      std::uint64_t seed, int newest, std::size_t candidates, int already_evicted)>;
  uniform_victim(int budget, draw rank) : budget_(budget), draw_(std::move(rank)) {}
  int budget() const override { return budget_; }
  float priority(int, facts const&) const override { return 0.0F; }
  std::optional<std::size_t> chosen_rank(facts const& now,
                                         std::size_t candidates,
                                         int evicted) const override {
    return draw_(now.seed, now.newest, candidates, evicted);
  }

 private:
  int budget_;
  draw draw_;
};

}  // namespace literal
