// SPDX-License-Identifier: Apache-2.0
// Read `retrieve` first.
#include "retrieval.hpp"

#include "host_contestant.hpp"
#include "llama/engine.hpp"
#include "llama/vocabulary.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <utility>

namespace comparison {

namespace {

/// Tokens of each row so far: its prompt, then what it answered, [contestant][row][token].
using texts_of = std::vector<std::vector<std::vector<std::int32_t>>>;

/// Step t of the rows whose answers are not complete; appends what they predict after the prompt.
void step(int t,
          std::span<retrieval_case const> batch,
          int answer_tokens,
          llama_example::engine& engine,
          std::vector<host_contestant>& field,
          texts_of& texts) {
  auto const now = static_cast<std::size_t>(t);
  auto const wanted = static_cast<std::size_t>(answer_tokens);
  std::vector<llama_example::group> groups;
  std::vector<std::vector<std::int32_t>*> rows;  // of the batch, in its order
  for (std::size_t which = 0; which < field.size(); ++which) {
    llama_example::group part{.cache = field[which].cache.get(), .rows = {}};
    part.scorer = field[which].scorer.get();
    for (std::size_t row = 0; row < batch.size(); ++row) {
      std::vector<std::int32_t>& text = texts[which][row];
      if (now + 1 >= batch[row].prompt.size() + wanted) continue;
      part.rows.push_back({static_cast<adore::index_t>(row), 1, std::span(text).subspan(now, 1)});
      rows.push_back(&text);
    }
    groups.push_back(std::move(part));
  }
  std::span<float const> const logits = engine.step(groups);
  auto const vocabulary = static_cast<std::size_t>(engine.weights().vocabulary);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i]->size() > now + 1) continue;  // still in the prompt
    auto const row = logits.subspan(i * vocabulary, vocabulary);
    rows[i]->push_back(
        static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
  }
}

}  // namespace

std::vector<std::span<retrieval_case const>> batches_of(request const& asked) {
  std::vector<std::span<retrieval_case const>> batches;
  std::span<retrieval_case const> left = asked.cases;
  while (!left.empty()) {
    auto const count = std::min(left.size(), static_cast<std::size_t>(asked.together));
    batches.push_back(left.first(count));
    left = left.subspan(count);
  }
  return batches;
}

int steps_of(std::span<retrieval_case const> batch, int answer_tokens) {
  std::size_t longest = 0;
  for (retrieval_case const& one : batch) longest = std::max(longest, one.prompt.size());
  return static_cast<int>(longest) + answer_tokens - 1;
}

result line_of(request const& asked,
               contestant const& entry,
               std::string settings,
               adore::index_t nominal_budget,
               adore::scope reach) {
  result line;
  line.policy = entry.label;
  line.settings = std::move(settings);
  if (nominal_budget != adore::unbounded) line.budget = nominal_budget;
  line.reach = reach;
  line.rebuilt = entry.rebuild.count;
  line.tokens = asked.tokens;
  return line;
}

std::vector<answered> retrieve(request const& asked,
                               llama_example::engine& engine,
                               progress const& report) {
  auto const batches = batches_of(asked);
  auto const add_steps = [&](int sum, std::span<retrieval_case const> batch) {
    return sum + steps_of(batch, asked.answer_tokens);
  };
  int const all_steps = std::accumulate(batches.begin(), batches.end(), 0, add_steps);
  int done = 0;
  std::vector<answered> lines;
  for (std::span<retrieval_case const> const batch : batches) {
    int const steps = steps_of(batch, asked.answer_tokens);
    std::vector<host_contestant> field;
    texts_of texts;
    for (contestant const& entry : asked.contestants) {
      field.push_back(make_host_contestant(
          entry,
          asked,
          engine,
          {.rows = static_cast<adore::index_t>(batch.size()), .tokens = steps}));
      texts.emplace_back();
      for (retrieval_case const& one : batch) texts.back().push_back(one.prompt);
    }
    for (int t = 0; t < steps; ++t) {
      step(t, batch, asked.answer_tokens, engine, field, texts);
      report(++done, all_steps);
    }
    for (std::size_t which = 0; which < field.size(); ++which) {
      if (lines.size() == which) {
        adore::any_cache const& cache = *field[which].cache;
        result line = line_of(
            asked, asked.contestants[which], cache.policy(), cache.nominal_budget(), cache.reach());
        line.kv_bytes = cache.allocated_bytes();
        line.kv_bytes_live = cache.live_bytes();
        lines.push_back({std::move(line), {}});
      }
      for (std::size_t row = 0; row < batch.size(); ++row) {
        auto const& text = texts[which][row];
        lines[which].answers.emplace_back(text.end() - asked.answer_tokens, text.end());
      }
    }
  }
  return lines;
}

std::vector<result> graded(request const& asked,
                           std::vector<answered> lines,
                           llama_example::vocabulary const& vocabulary) {
  std::vector<result> results;
  for (answered& one : lines) {
    int right = 0;
    for (std::size_t i = 0; i < asked.cases.size(); ++i) {
      std::string text;
      for (std::int32_t const token : one.answers[i]) text += vocabulary.decode(token);
      right += first_number(text) == asked.cases[i].expected ? 1 : 0;
      one.line.answers.push_back(std::move(text));
    }
    one.line.exact_match = static_cast<double>(right) / static_cast<double>(asked.cases.size());
    results.push_back(std::move(one.line));
  }
  return results;
}

}  // namespace comparison
