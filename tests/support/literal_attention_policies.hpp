// SPDX-License-Identifier: Apache-2.0
// Policies that rank by the attention that tokens received: the H2O family, TOVA, SnapKV.
#pragma once

#include "literal_lane.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

namespace literal {

/// Kept state of all rules below: one float per kept token, 0 for a newcomer.
template <class Self>
class rule_with_mass : public rule_of<Self> {
 public:
  void arrive(int position, token const&) override { mass_[position] = 0.0F; }
  void forget(int position) override { mass_.erase(position); }
  float mass(int position) const { return mass_.at(position); }

 protected:
  std::map<int, float> mass_;
};

/// m = heavy + recent; the accumulated attention ranks all but the newest `recent`.
template <class Self>
class h2o_like : public rule_with_mass<Self> {
 public:
  h2o_like(int heavy, int recent) : heavy_(heavy), recent_(recent) {
    if (heavy < 0 || recent < 0) throw std::invalid_argument("heavy or recent");
  }
  int budget() const override { return heavy_ + recent_; }
  int protected_newest() const override { return recent_; }
  void observe(int position, float sum, int, facts const&) override {
    this->mass_[position] += sum;
  }
  float priority(int position, facts const&) const override { return this->mass(position); }

 private:
  int heavy_;
  int recent_;
};

class h2o : public h2o_like<h2o> {
 public:
  using h2o_like::h2o_like;
};

inline float power(float factor, int exponent) {
  return static_cast<float>(std::pow(static_cast<double>(factor), exponent));
}

/// One factor per query: a call of q queries decays the old mass q times, its own queries by the
/// number of queries after them.
class decayed_h2o : public h2o_like<decayed_h2o> {
 public:
  decayed_h2o(int heavy, int recent, float factor = 0.97F)
      : h2o_like(heavy, recent), factor_(factor) {}
  static decayed_h2o of_budget(int m) { return {m - m / 4, m / 4}; }
  float query_weight(int later) const override { return power(factor_, later); }
  void observe(int position, float sum, int queries, facts const&) override {
    mass_[position] = mass_[position] * power(factor_, queries) + sum;
  }

 private:
  float factor_;
};

/// Decayed mass times the exponential of a controller's logit, cut to 30 in size; a logit that is
/// not a number stays one. Sinks count inside m.
class attentive_release : public rule_with_mass<attentive_release> {
 public:
  attentive_release(int budget, int recent, int sinks, float factor, float epsilon)
      : budget_(budget), recent_(recent), sinks_(sinks), factor_(factor), epsilon_(epsilon) {
    if (recent < 0 || sinks < 0 || sinks + recent > budget) throw std::invalid_argument("recent");
  }
  int budget() const override { return budget_; }
  int protected_first() const override { return sinks_; }
  int protected_newest() const override { return recent_; }
  float query_weight(int later) const override { return power(factor_, later); }
  void arrive(int position, token const& what) override {
    rule_with_mass::arrive(position, what);
    gain_[position] =
        is_nan(what.score) ? what.score : std::exp(std::clamp(what.score, -30.0F, 30.0F));
  }
  void forget(int position) override {
    rule_with_mass::forget(position);
    gain_.erase(position);
  }
  void observe(int position, float sum, int queries, facts const&) override {
    mass_[position] = mass_[position] * power(factor_, queries) + sum;
  }
  float priority(int position, facts const&) const override {
    return (mass(position) + epsilon_) * gain_.at(position);
  }

 private:
  int budget_;
  int recent_;
  int sinks_;
  float factor_;
  float epsilon_;
  std::map<int, float> gain_;
};

/// Mass per query that could see the token, itself included.
class h2o_per_age : public h2o_like<h2o_per_age> {
 public:
  using h2o_like::h2o_like;
  static h2o_per_age of_budget(int m) { return {m - m / 2, m / 2}; }
  float priority(int position, facts const& now) const override {
    return mass(position) / static_cast<float>(now.newest - position + 1);
  }
};

/// The H2O paper's Algorithm 1 as printed: the score is the current row alone, taken over the old
/// set, so the current token has 0, leaves at once, and the set freezes.
class h2o_algorithm_1 : public rule_with_mass<h2o_algorithm_1> {
 public:
  explicit h2o_algorithm_1(int k) : k_(k) {}
  int budget() const override { return k_; }
  float query_weight(int later) const override { return later == 0 ? 1.0F : 0.0F; }
  void observe(int position, float sum, int, facts const& now) override {
    mass_[position] = position == now.newest ? 0.0F : sum;
  }
  float priority(int position, facts const&) const override { return mass(position); }

 private:
  int k_;
};

/// The last query's row alone decides; the newest token competes unless protected.
class tova : public rule_with_mass<tova> {
 public:
  explicit tova(int budget, bool protect_newest = false)
      : budget_(budget), protect_newest_(protect_newest) {
    if (budget < 0) throw std::invalid_argument("budget");
  }
  int budget() const override { return budget_; }
  int protected_newest() const override { return protect_newest_ ? 1 : 0; }
  float query_weight(int later) const override { return later == 0 ? 1.0F : 0.0F; }
  void observe(int position, float sum, int, facts const&) override { mass_[position] = sum; }
  float priority(int position, facts const&) const override { return mass(position); }

 private:
  int budget_;
  bool protect_newest_;
};

/// One selection at the end of the prompt by the votes of its last `window` queries, pooled over
/// the prefix; the window itself stays.
/// Afterwards (the paper stops at the prompt; these are readings): `none`: no eviction
/// outside prompt(), not even by set_budget; `window`: a sliding window of m, oldest first; `h2o`:
/// H2O(heavy = m - window, recent = window) whose masses start at the unpooled votes (for the
/// window's own tokens too) and which counts every later query with 1.
class snapkv : public rule_with_mass<snapkv> {
 public:
  enum class pool { none, avg, max };
  enum class then { none, window, h2o };

  snapkv(int window, int budget, int kernel, pool pooling = pool::avg, then after = then::none)
      : window_(window), budget_(budget), kernel_(kernel), pooling_(pooling), after_(after) {
    if (window < 1 || budget <= window) throw std::invalid_argument("budget must be > window");
    if (kernel < 1 || kernel % 2 == 0) throw std::invalid_argument("kernel must be odd");
  }
  int budget() const override { return budget_; }
  int protected_newest() const override { return prompting_ || after_ == then::h2o ? window_ : 0; }
  float query_weight(int later) const override {
    return !prompting_ || later < window_ ? 1.0F : 0.0F;
  }
  void observe(int position, float sum, int, facts const&) override { mass_[position] += sum; }
  void begin_prompt() override { prompting_ = true; }
  void prompt_observed(int tokens) override { pooled_ = pooled_votes(tokens - window_); }
  void end_prompt() override { prompting_ = false; }
  bool evicts() const override { return prompting_ || after_ != then::none; }

  float priority(int position, facts const&) const override {
    if (prompting_) return pooled_.contains(position) ? pooled_.at(position) : mass(position);
    return after_ == then::h2o ? mass(position) : static_cast<float>(position);
  }

 private:
  /// Of the `prefix` first tokens. avg: zero padding, divided by the kernel also at the borders;
  /// max: padding with -inf, that is, no padding.
  std::map<int, float> pooled_votes(int prefix) const {
    std::map<int, float> pooled;
    for (int j = 0; j < prefix; ++j) {
      float sum = 0.0F;
      float highest = mass(j);
      for (int i = j - kernel_ / 2; i <= j + kernel_ / 2; ++i) {
        if (i < 0 || i >= prefix) continue;
        sum += mass(i);
        highest = std::max(highest, mass(i));
      }
      pooled[j] = pooling_ == pool::none  ? mass(j)
                  : pooling_ == pool::avg ? sum / static_cast<float>(kernel_)
                                          : highest;
    }
    return pooled;
  }
  int window_;
  int budget_;
  int kernel_;
  pool pooling_;
  then after_;
  bool prompting_ = false;
  std::map<int, float> pooled_;
};

/// H2O as its authors' mask simulation runs it. Nothing is ever released (`resident`); `attended`
/// are the past tokens that the next query sees beside itself. The token that has just left the
/// window is masked for one step whatever its score, keeps the score and may be chosen next time; a
/// masked token's score becomes 0, and it may come back where fewer than `heavy` scores are > 0.
class h2o_mask_simulation {
 public:
  h2o_mask_simulation(int heavy, int recent) : heavy_(heavy), recent_(recent) {
    if (heavy < 0) throw std::invalid_argument("heavy");
    if (recent < 1) throw std::invalid_argument("recent: with 0 the published code masks nothing");
  }

  /// A prompt is a step on an empty simulation.
  void step(std::vector<row> const& rows, int accepted) {
    for (int i = 0; i < accepted; ++i) score_[resident_++] = 0.0F;
    for (auto& [position, score] : score_) {
      float sum = 0.0F;
      for (int i = 0; i < accepted; ++i) {
        auto const& query = rows[static_cast<std::size_t>(i)];
        if (query.contains(position)) sum += query.at(position);
      }
      score += sum;
    }
    attended_.clear();
    if (resident_ <= heavy_ + recent_) {  // "it prunes only when the length exceeds the budget"
      for (int p = 0; p < resident_; ++p) attended_.insert(p);
      return;
    }
    std::map<int, float> candidates;
    for (int p = 0; p < resident_ - recent_; ++p) candidates[p] = score_.at(p);
    for (int const p : top(heavy_, candidates)) attended_.insert(p);
    for (auto const& [p, score] : candidates) {
      if (!attended_.contains(p)) score_[p] = 0.0F;
    }
    // With the next token itself these are the newest `recent`.
    for (int p = resident_ - recent_ + 1; p < resident_; ++p) attended_.insert(p);
  }

  std::vector<int> attended() const { return {attended_.begin(), attended_.end()}; }
  int resident() const { return resident_; }  // all of 0 .. resident() - 1
  float score(int position) const { return score_.at(position); }

 private:
  int heavy_;
  int recent_;
  int resident_ = 0;
  std::map<int, float> score_;
  std::set<int> attended_;
};

}  // namespace literal
