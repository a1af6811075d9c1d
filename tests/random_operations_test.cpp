// SPDX-License-Identifier: Apache-2.0
// Random sequences of everything that one can do with a cache, each lane beside its literal model:
// after every operation both hold the same tokens.
#include "adore/kv_cache.hpp"
#include "support/every_policy.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace adore::testing {

namespace {

constexpr index_t rows = 3, layers = 2, kv_heads = 2, group = 2, channels = 16, max_new = 4;
constexpr index_t heads = kv_heads * group;
constexpr position_t longest = 40;  // of a sequence whose lanes do not bound it

/// What the literal model needs to know of one step of one row.
struct planned_row {
  index_t row, count, accepted;
  std::vector<std::vector<std::vector<literal::row>>> weights;  // [layer][head][query]
  std::vector<float> keys;                                      // [token]: norm, same in all heads
  std::vector<index_t> ids;                                     // [token]
};

class run {
 public:
  run(policy_case const& which, scope reach, gqa_reduction reduction, std::uint32_t seed)
      : case_(which), reduction_(reduction), random_(seed) {
    bool const bounded = which.budget != unbounded;
    // bounded lanes get no slot more than they need, so that slots change hands all the time
    shape_ = {rows, layers, kv_heads, bounded ? 8 + max_new : longest + max_new, channels};
    cache_ = which.make(shape_,
                        {.reach = reach,
                         .positions = position_scheme::original,
                         .reduction = reduction,
                         .max_new = max_new,
                         .attention_scale = 1.0F});
    log_ << which.name << ", scope " << word_of(reach) << ", reduction "
         << static_cast<int>(reduction) << ", seed " << seed << ":";
    for (index_t row = 0; row < rows; ++row) {
      for (index_t lane = 0; lane < cache_->lanes_per_row(); ++lane) {
        index_t const number = row * cache_->lanes_per_row() + lane;
        twins_.push_back(which.twin(cache_->layer_of(number), cache_->head_of(number)));
      }
    }
    inside_.assign(rows, false);
  }

  void operator()(int operations) {
    try {
      for (int i = 0; i < operations; ++i) {
        operate();
        check_kept();
      }
    } catch (std::exception const& error) {
      FAIL(error.what() << ", after " << log_.str());
    }
  }

 private:
  int below(int end) { return static_cast<int>(random_() % static_cast<unsigned>(end)); }
  literal::lane& twin(index_t lane) { return twins_[static_cast<std::size_t>(lane)]; }
  template <class Action>
  void for_lanes(index_t row, Action&& action) {
    index_t const first = row * cache_->lanes_per_row();
    for (index_t i = 0; i < cache_->lanes_per_row(); ++i) action(first + i);
  }
  std::optional<index_t> any_row(bool open) {
    std::vector<index_t> found;
    for (index_t row = 0; row < rows; ++row) {
      if (cache_->is_open(row) == open) found.push_back(row);
    }
    if (found.empty()) return std::nullopt;
    return found[static_cast<std::size_t>(below(static_cast<int>(found.size())))];
  }

  void operate() {
    int const dice = below(100);
    auto const open_row = any_row(true);
    auto const free_row = any_row(false);
    if (free_row && (dice < 8 || !open_row)) return open(*free_row);
    if (!open_row) return;
    if (dice < 12) return close(*open_row);
    if (dice < 18 && free_row) return fork(*open_row, *free_row);
    if (dice < 26 && free_row) return prompt(*free_row);
    if (dice < 34) return set_budget(*open_row);
    if (dice < 40) return reserve(*open_row);
    if (dice < 44) return save(*open_row);
    if (dice < 48 && free_row && saved_) return restore(*free_row);
    step();
  }

  void open(index_t row) {
    auto const seed = static_cast<std::uint64_t>(below(1000));
    log_ << " open(" << row << ", " << seed << ")";
    cache_->open(row, seed);
    for_lanes(row, [&](index_t lane) { twin(lane).open(seed); });
    inside_[static_cast<std::size_t>(row)] = false;
  }
  void close(index_t row) {
    log_ << " close(" << row << ")";
    cache_->close(row);
  }
  void copy_twins(index_t from, index_t to) {
    for_lanes(from, [&](index_t lane) {
      twin(lane + (to - from) * cache_->lanes_per_row()) = twin(lane);
    });
    inside_[static_cast<std::size_t>(to)] = inside_[static_cast<std::size_t>(from)];
  }
  void fork(index_t from, index_t to) {
    log_ << " fork(" << from << ", " << to << ")";
    cache_->fork(from, to);
    copy_twins(from, to);
  }
  void save(index_t row) {
    log_ << " save(" << row << ")";
    saved_ = cache_->snapshot(row);
    saved_twins_.clear();
    for_lanes(row, [&](index_t lane) { saved_twins_.push_back(twin(lane)); });
    saved_inside_ = inside_[static_cast<std::size_t>(row)];
  }
  void restore(index_t row) {
    log_ << " restore(" << row << ")";
    cache_->restore(row, *saved_);
    std::size_t i = 0;
    for_lanes(row, [&](index_t lane) { twin(lane) = saved_twins_[i++]; });
    inside_[static_cast<std::size_t>(row)] = saved_inside_;
  }
  void set_budget(index_t row) {
    if (!case_.budget_can_change) return;
    index_t const budget = case_.least_budget + below(9 - case_.least_budget);
    log_ << " set_budget(" << row << ", " << budget << ")";
    cache_->set_budget(row, budget);
    expected_.clear();
    for_lanes(row, [&](index_t lane) { expect(lane, twin(lane).set_budget(budget)); });
    check_released();
  }
  void reserve(index_t row) {
    if (!case_.budget_can_change) return;
    index_t const budget = cache_->budget(row * cache_->lanes_per_row());
    index_t const tokens = below(4);
    if (budget == unbounded || budget - tokens < case_.least_budget) return;
    log_ << " reserve(" << row << ", " << tokens << ")";
    cache_->reserve(row, tokens);
    expected_.clear();
    for_lanes(row, [&](index_t lane) {
      auto released =
          twin(lane).set_budget(std::max(std::min(case_.sinks, budget), budget - tokens));
      expect(lane, released);
      twin(lane).set_budget(budget);
    });
    check_released();
  }

  /// Ids that make no nested and no dangling spans, which the two models read differently.
  std::vector<index_t> ids_for(index_t row, index_t count) {
    std::vector<index_t> ids;
    bool inside = inside_[static_cast<std::size_t>(row)];
    for (index_t j = 0; j < count; ++j) {
      bool const turn = case_.reads_tokens && below(4) == 0;
      ids.push_back(!turn ? 7 : inside ? closing_id : opening_id);
      if (turn) inside = !inside;
    }
    return ids;
  }
  void accept_ids(planned_row const& plan) {
    for (index_t j = 0; j < plan.accepted; ++j) {
      index_t const id = plan.ids[static_cast<std::size_t>(j)];
      if (id != 7) inside_[static_cast<std::size_t>(plan.row)] = id == opening_id;
    }
  }

  void step() {
    std::vector<planned_row> plans;
    for (index_t row = 0; row < rows; ++row) {
      if (!cache_->is_open(row) || below(4) == 0) continue;
      index_t const count = 1 + (below(2) == 0 ? 0 : below(max_new));
      bool const unbounded_lanes = cache_->budget(row * cache_->lanes_per_row()) == unbounded;
      if (unbounded_lanes && cache_->next(row) + count > longest) continue;
      planned_row plan{row, count, below(3) == 0 ? below(count + 1) : count, {}, {}, {}};
      plan.ids = ids_for(row, count);
      for (index_t j = 0; j < count; ++j) plan.keys.push_back(static_cast<float>(below(6)));
      for (index_t layer = 0; layer < layers; ++layer) {
        auto& of_layer = plan.weights.emplace_back(heads);
        for (index_t head = 0; head < heads; ++head) {
          auto const kept = cache_->kept(cache_->lane(row, layer, head / group));
          for (index_t i = 0; i < count; ++i) {
            literal::row query;
            for (position_t const p : kept) query[p] = sixty_fourths();
            for (index_t j = 0; j <= i; ++j) query[cache_->next(row) + j] = sixty_fourths();
            of_layer[static_cast<std::size_t>(head)].push_back(std::move(query));
          }
        }
      }
      plans.push_back(std::move(plan));
    }
    if (plans.empty()) return;
    log_ << " step(";
    for (planned_row const& plan : plans) {
      log_ << " " << plan.row << ":" << plan.accepted << "/" << plan.count;
    }
    log_ << " )";
    run_step(plans);
    expected_.clear();
    for (planned_row const& plan : plans) {
      for_lanes(plan.row, [&](index_t lane) {
        expect(lane, twin(lane).step(reduced(plan, lane), plan.accepted, facts(plan, lane)));
      });
      accept_ids(plan);
    }
    check_released();
  }
  float sixty_fourths() { return static_cast<float>(below(9)) / 64.0F; }

  void run_step(std::vector<planned_row> const& plans) {
    std::vector<row_tokens> step_rows;
    std::vector<index_t> accepted;
    std::vector<float> k;
    position_t end = 0;
    for (planned_row const& plan : plans) {
      step_rows.push_back({plan.row, plan.count, plan.ids});
      accepted.push_back(plan.accepted);
      end = std::max(end, cache_->next(plan.row) + plan.count);
      for (float const norm : plan.keys) append_key(k, norm);
    }
    auto const tokens = static_cast<index_t>(k.size()) / (kv_heads * channels);
    cache_->begin_step(step_rows);
    token_view<float const> const keys(k.data(), tokens, kv_heads, channels);
    // one column per position, from the newest down: any order must do
    position_list columns = from_to(0, end);
    std::reverse(columns.begin(), columns.end());
    for (index_t layer = 0; layer < layers; ++layer) {
      cache_->append(layer, keys, keys);
      std::vector<float> weights;  // [token, head, column]
      for (planned_row const& plan : plans) {
        for (index_t i = 0; i < plan.count; ++i) {
          for (auto const& head : plan.weights[static_cast<std::size_t>(layer)]) {
            literal::row const& query = head[static_cast<std::size_t>(i)];
            for (position_t const p : columns) {
              auto const found = query.find(p);
              weights.push_back(found == query.end() ? 0.0F : found->second);
            }
          }
        }
      }
      cache_->observe(
          layer,
          token_view<float const>(weights.data(), tokens, heads, static_cast<index_t>(end)),
          columns);
    }
    cache_->end_step(accepted);
  }
  static void append_key(std::vector<float>& k, float norm) {
    for (index_t head = 0; head < kv_heads; ++head) {
      k.push_back(norm);
      k.resize(k.size() + channels - 1, 0.0F);
    }
  }

  /// A dense prompt in which each query attends 1, 2, 4, ... tokens equally, so that its
  /// probabilities are exact.
  void prompt(index_t row) {
    open(row);
    index_t const count = 1 + below(channels);
    log_ << " prompt(" << row << ", " << count << ")";
    planned_row plan{row, count, count, {}, {}, ids_for(row, count)};
    for (index_t j = 0; j < count; ++j) plan.keys.push_back(static_cast<float>(below(6)));
    cache_->begin_prompt(row, count, plan.ids);
    for (index_t layer = 0; layer < layers; ++layer) {
      std::vector<float> k, q, out(static_cast<std::size_t>(count * heads * channels));
      for (index_t j = 0; j < count; ++j) {
        if (case_.scores_keys) {
          append_key(k, plan.keys[static_cast<std::size_t>(j)]);
        } else {
          for (index_t head = 0; head < kv_heads; ++head) {
            for (index_t c = 0; c < channels; ++c) k.push_back(c == j ? 1.0F : 0.0F);
          }
        }
      }
      auto& of_layer = plan.weights.emplace_back(heads);
      for (index_t i = 0; i < count; ++i) {
        for (index_t head = 0; head < heads; ++head) {
          position_list attended = from_to(0, i + 1);
          std::shuffle(attended.begin(), attended.end(), random_);
          int size = 1;
          while (2 * size <= i + 1 && below(3) != 0) size *= 2;
          attended.resize(static_cast<std::size_t>(size));
          literal::row query;
          std::vector<float> logits(channels, -1000.0F);
          for (position_t const p : attended) {
            query[p] = 1.0F / static_cast<float>(size);
            logits[static_cast<std::size_t>(p)] = 0.0F;
          }
          q.insert(q.end(), logits.begin(), logits.end());
          of_layer[static_cast<std::size_t>(head)].push_back(std::move(query));
        }
      }
      token_view<float const> const keys(k.data(), count, kv_heads, channels);
      cache_->append(layer, keys, keys);
      cache_->attend(layer,
                     token_view<float const>(q.data(), count, heads, channels),
                     token_view<float>(out.data(), count, heads, channels));
    }
    cache_->end_step();
    expected_.clear();
    for_lanes(row, [&](index_t lane) {
      expect(lane, twin(lane).prompt(count, reduced(plan, lane), facts(plan, lane)));
    });
    accept_ids(plan);
    check_released();
  }

  /// The rows of a lane: reduced over each group, then added over the KV heads and layers it spans.
  std::vector<literal::row> reduced(planned_row const& plan, index_t lane) const {
    std::vector<literal::row> result(static_cast<std::size_t>(plan.count));
    for (index_t layer = 0; layer < layers; ++layer) {
      for (index_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
        if (cache_->lane(plan.row, layer, kv_head) != lane) continue;
        for (std::size_t i = 0; i < result.size(); ++i) {
          literal::row of_group;
          for (index_t member = 0; member < group; ++member) {
            auto const head = static_cast<std::size_t>(kv_head * group + member);
            for (auto const& [p, w] : plan.weights[static_cast<std::size_t>(layer)][head][i]) {
              float& sum = of_group[p];
              sum = reduction_ == gqa_reduction::max ? std::max(sum, w) : sum + w;
            }
          }
          for (auto const& [p, w] : of_group) {
            result[i][p] += reduction_ == gqa_reduction::mean ? w / float{group} : w;
          }
        }
      }
    }
    return result;
  }
  std::vector<literal::token> facts(planned_row const& plan, index_t lane) const {
    index_t spans = 0;
    for (index_t layer = 0; layer < layers; ++layer) {
      for (index_t head = 0; head < kv_heads; ++head) {
        spans += cache_->lane(plan.row, layer, head) == lane ? 1 : 0;
      }
    }
    std::vector<literal::token> result;
    for (std::size_t j = 0; j < plan.keys.size(); ++j) {
      auto const kind = plan.ids[j] == opening_id   ? literal::role::open
                        : plan.ids[j] == closing_id ? literal::role::close
                                                    : literal::role::ordinary;
      // the norm enters as the sum of squares that the lane sees: it orders alike
      result.push_back(
          {.key_norm = static_cast<float>(spans) * plan.keys[j] * plan.keys[j], .kind = kind});
    }
    return result;
  }

  void expect(index_t lane, std::vector<literal::release> const& released) {
    for (literal::release const& r : released) expected_.emplace_back(lane, r.position);
  }
  void check_released() {
    std::vector<std::pair<index_t, position_t>> told;
    for (released_token const& r : cache_->released()) told.emplace_back(r.lane, r.position);
    std::sort(told.begin(), told.end());
    std::sort(expected_.begin(), expected_.end());
    if (told != expected_) FAIL("other tokens were released, after " << log_.str());
  }
  void check_kept() {
    for (index_t row = 0; row < rows; ++row) {
      if (!cache_->is_open(row)) continue;
      for_lanes(row, [&](index_t lane) {
        position_list const expected = twin(lane).kept();
        position_list const kept = cache_->kept(lane);
        bool const same = kept == expected && cache_->next(row) == twin(lane).newest() + 1;
        if (!same) {
          FAIL("row " << row << " lane " << lane << " keeps " << doctest::toString(kept) << ", not "
                      << doctest::toString(expected) << ", after " << log_.str());
        }
      });
    }
  }

  policy_case const& case_;
  gqa_reduction reduction_;
  std::mt19937 random_;
  kv_shape shape_;
  std::unique_ptr<tested_cache> cache_;
  std::vector<literal::lane> twins_;  // [lane]
  std::vector<bool> inside_;          // [row]: in an open span
  std::optional<row_snapshot> saved_;
  std::vector<literal::lane> saved_twins_;
  bool saved_inside_ = false;
  std::vector<std::pair<index_t, position_t>> expected_;  // lane, position
  std::ostringstream log_;
};

}  // namespace

TEST_CASE("any sequence of operations keeps what the literal model keeps") {
  constexpr int operations = 300;
  std::uint32_t seed = 1;
  for (policy_case const& which : every_policy_case()) {
    for (scope const reach : {scope::model, scope::layer, scope::kv_head}) {
      if (which.compared_per_kv_head_only && reach != scope::kv_head) continue;
      for (gqa_reduction const reduction :
           {gqa_reduction::sum, gqa_reduction::mean, gqa_reduction::max}) {
        run(which, reach, reduction, seed++)(operations);
      }
    }
  }
  CHECK(operations * static_cast<int>(seed - 1) > 50000);
}

}  // namespace adore::testing
