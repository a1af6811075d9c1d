// SPDX-License-Identifier: Apache-2.0
// Read `run` first.
#include "comparison.hpp"

#include "host_contestant.hpp"
#include "llama/engine.hpp"
#include "measures.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <span>

namespace comparison {

namespace {

using tokens_of = std::vector<std::vector<std::int32_t>>;

/// Full attention's weights in one step: [sequence][layer, kv_head][position], summed over the
/// query heads of the KV head.
using full_weights = std::vector<std::vector<std::vector<float>>>;

struct competitor {
  contestant asked;
  host_contestant made;
  adore::index_t measured_from = 0;  ///< kept weight counts from this position
  std::vector<measures> by_row{};
  double stage_seconds = 0.0;
  double tokens_per_second = 0.0;
  std::size_t live_bytes = 0;
  adore::rebuild_counts cost{};
};

class match {
 public:
  match(request const& asked, llama_example::engine& engine, tokens_of const& tokens)
      : asked_(asked),
        engine_(engine),
        tokens_(tokens),
        scoring_(asked.threads),
        vocabulary_(static_cast<std::size_t>(engine.weights().vocabulary)),
        weights_(tokens.size()) {
    auto const lanes =
        static_cast<std::size_t>(engine.weights().layers * engine.weights().kv_heads);
    for (auto& of_sequence : weights_) of_sequence.resize(lanes);
    for (contestant const& entry : asked.contestants) enter(entry);
  }

  std::vector<result> play(progress const& report) {
    int const steps = asked_.tokens - asked_.prompt;
    if (asked_.prompt > 0) prompt();
    for (int t = asked_.prompt; t < asked_.tokens; ++t) {
      step(t);
      report(t - asked_.prompt + 1, steps);
    }
    for (competitor& each : field_) each.live_bytes = each.made.cache->live_bytes();
    for (competitor& each : field_) each.cost = each.made.cache->rebuild_cost();
    for (competitor& each : field_) time(each);
    std::vector<result> results;
    for (competitor const& each : field_) results.push_back(summary(each));
    return results;
  }

 private:
  void enter(contestant const& entry) {
    competitor each{.asked = entry,
                    .made = make_host_contestant(entry,
                                                 asked_,
                                                 engine_,
                                                 {.rows = asked_.sequences,
                                                  .tokens = asked_.tokens + timed_steps,
                                                  .prompt = asked_.prompt})};
    each.measured_from = each.made.cache->nominal_budget() == adore::unbounded
                             ? 0
                             : each.made.cache->nominal_budget();
    each.by_row.resize(static_cast<std::size_t>(asked_.sequences));
    field_.push_back(std::move(each));
  }

  std::vector<float>& full_lane(adore::index_t row, adore::index_t layer, adore::index_t kv_head) {
    auto const lane = static_cast<std::size_t>(layer * engine_.weights().kv_heads + kv_head);
    return weights_[static_cast<std::size_t>(row)][lane];
  }

  /// One group per competitor: `rows` and what its attention is watched for.
  llama_example::group group_of(std::size_t which, std::vector<adore::row_tokens> rows) {
    competitor& each = field_[which];
    llama_example::group part{.cache = each.made.cache.get(), .rows = std::move(rows)};
    part.scorer = each.made.scorer.get();
    part.watch = [this, &each, which](adore::attention_record const& seen) {
      // full attention holds every position, so that a position is an index
      std::vector<float>& full = full_lane(seen.row, seen.layer, seen.kv_head);
      if (which == 0) full.assign(seen.weights.begin(), seen.weights.end());
      if (static_cast<adore::index_t>(full.size()) - 1 < each.measured_from) return;
      double held = 0.0;
      for (std::size_t i = 0; i < seen.positions.size(); ++i) {
        if (seen.weights[i] > 0.0F) {
          held += double{full[static_cast<std::size_t>(seen.positions[i])]};
        }
      }
      measures& sums = each.by_row[static_cast<std::size_t>(seen.row)];
      sums.kept_weight += held / std::accumulate(full.begin(), full.end(), 0.0);
      ++sums.kept_weight_samples;
    };
    return part;
  }

  /// Dense prompts, one row of one competitor at a time: their logits would not fit otherwise.
  void prompt() {
    for (std::size_t row = 0; row < tokens_.size(); ++row) {
      std::optional<reference_prediction> full;  // by keep_all, the first of the field
      for (competitor& each : field_) {
        auto const count = static_cast<adore::index_t>(asked_.prompt);
        std::span<std::int32_t const> const text(tokens_[row].data(),
                                                 static_cast<std::size_t>(count));
        llama_example::group part{.cache = each.made.cache.get(),
                                  .rows = {{static_cast<adore::index_t>(row), count, text}},
                                  .is_prompt = true,
                                  .scorer = each.made.scorer.get()};
        auto const logits = engine_.step({&part, 1}).last(vocabulary_);
        if (!full) full.emplace(logits);
        each.by_row[row].add(logits,
                             *full,
                             tokens_[row][static_cast<std::size_t>(asked_.prompt)],
                             2 * asked_.prompt >= asked_.tokens);
      }
    }
  }

  /// Token t of all sequences, for all competitors.
  void step(int t) {
    std::vector<llama_example::group> groups;
    auto const token = static_cast<std::size_t>(t);
    for (std::size_t which = 0; which < field_.size(); ++which) {
      std::vector<adore::row_tokens> rows;
      for (std::size_t row = 0; row < tokens_.size(); ++row) {
        rows.push_back({static_cast<adore::index_t>(row),
                        1,
                        std::span<std::int32_t const>(&tokens_[row][token], 1)});
      }
      groups.push_back(group_of(which, std::move(rows)));
    }
    std::span<float const> const logits = engine_.step(groups);
    for (std::size_t which = 0; which < field_.size(); ++which) {
      field_[which].stage_seconds += engine_.stage_seconds()[which];
    }
    if (t + 1 == asked_.tokens) return;  // its successor is not known

    std::size_t const rows = tokens_.size();
    std::vector<reference_prediction> full;
    for (std::size_t row = 0; row < rows; ++row) {
      full.emplace_back(logits.subspan(row * vocabulary_, vocabulary_));
    }
    scoring_.for_each(static_cast<int>(field_.size() * rows), [&](int i) {
      auto const which = static_cast<std::size_t>(i) / rows;
      auto const row = static_cast<std::size_t>(i) % rows;
      field_[which].by_row[row].add(
          logits.subspan(static_cast<std::size_t>(i) * vocabulary_, vocabulary_),
          full[row],
          tokens_[row][token + 1],
          2 * (t + 1) >= asked_.tokens);
    });
  }

  /// A few steps of the first row alone, in the state in which the text left it.
  void time(competitor& each) {
    std::vector<double> seconds;
    for (std::size_t i = 0; i < timed_steps; ++i) {
      std::span<std::int32_t const> const token(&tokens_[0][i % tokens_[0].size()], 1);
      llama_example::group part{.cache = each.made.cache.get(),
                                .rows = {{0, 1, token}},
                                .scorer = each.made.scorer.get()};
      auto const start = std::chrono::steady_clock::now();
      engine_.step({&part, 1});
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + timed_steps / 2, seconds.end());
    each.tokens_per_second = 1.0 / seconds[timed_steps / 2];
  }

  result summary(competitor const& each) const {
    measures sums;
    for (measures const& row : each.by_row) sums.add(row);
    result line;
    line.policy = each.asked.label;
    line.rebuilt = each.asked.rebuild.count;
    auto const tokens = static_cast<double>(asked_.tokens - asked_.prompt) * asked_.sequences;
    line.computed_per_token = static_cast<double>(each.cost.computed) / tokens;
    line.deferred_per_token = static_cast<double>(each.cost.deferred) / tokens;
    line.settings = each.made.cache->policy();
    if (each.made.cache->nominal_budget() != adore::unbounded) {
      line.budget = each.made.cache->nominal_budget();
    }
    line.reach = each.made.cache->reach();
    line.tokens = asked_.tokens;
    line.perplexity = sums.perplexity();
    line.perplexity_second_half = sums.perplexity_second_half();
    line.kl = sums.mean_kl();
    line.top1 = sums.top1();
    line.kept_weight = sums.mean_kept_weight();
    line.kv_bytes = each.made.cache->allocated_bytes();
    line.kv_bytes_live = each.live_bytes;
    line.stage_us_per_token =
        1e6 * each.stage_seconds / (asked_.tokens - asked_.prompt) / asked_.sequences;
    line.tokens_per_second = each.tokens_per_second;
    return line;
  }

  request const& asked_;
  llama_example::engine& engine_;
  tokens_of const& tokens_;
  llama_example::workers scoring_;
  std::size_t vocabulary_;
  full_weights weights_;
  std::vector<competitor> field_;
};

}  // namespace

std::vector<result> run(request const& asked,
                        llama_example::engine& engine,
                        tokens_of const& tokens,
                        progress const& report) {
  return match(asked, engine, tokens).play(report);
}

}  // namespace comparison
