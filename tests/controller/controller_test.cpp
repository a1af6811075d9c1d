// SPDX-License-Identifier: Apache-2.0
// A controller against its formulas in every mode, and what must not change its scores: how the
// tokens came, what came after them, who else was in the batch, what was rejected.
#include "adore/controller/controller.hpp"

#include "literal_controller.hpp"
#include "random_controller.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace adore::testing {

namespace {

using embeddings_t = std::vector<std::vector<float>>;

embeddings_t random_text(std::mt19937& random, index_t inputs, std::size_t tokens) {
  embeddings_t text;
  for (std::size_t i = 0; i < tokens; ++i) {
    text.push_back(draw(random, static_cast<std::size_t>(inputs)));
  }
  return text;
}
std::vector<float> joined(embeddings_t const& text, std::size_t first, std::size_t end) {
  std::vector<float> all;
  for (std::size_t i = first; i < end; ++i) all.insert(all.end(), text[i].begin(), text[i].end());
  return all;
}
std::vector<float> joined(embeddings_t const& text) {
  return joined(text, 0, text.size());
}

/// Logits of all tokens at the present step.
std::vector<float> scores(controller const& scorer, controller_state& state) {
  std::vector<float> logits(static_cast<std::size_t>(scorer.weights().outputs * state.count));
  scorer.score(state, logits);
  return logits;
}
/// Logits of the tokens that a static controller hears, [token, output].
std::vector<float> heard(controller const& scorer,
                         controller_state& state,
                         std::vector<float> const& embeddings) {
  auto const tokens = embeddings.size() / static_cast<std::size_t>(scorer.weights().inputs);
  std::vector<float> logits(tokens * static_cast<std::size_t>(scorer.weights().outputs));
  scorer.hear(state, embeddings, logits);
  return logits;
}

std::vector<controller_options> every_option() {
  std::vector<controller_options> all;
  for (gru_form const gru : {gru_form::pytorch, gru_form::cho, gru_form::none}) {
    for (input_scaling const input : {input_scaling::none, input_scaling::rms}) {
      for (int mode = 0; mode <= static_cast<int>(score_mode::bidirectional); ++mode) {
        for (int feature = 0; feature <= static_cast<int>(position_feature::distance); ++feature) {
          controller_options const options{.gru = gru,
                                           .mode = static_cast<score_mode>(mode),
                                           .position = static_cast<position_feature>(feature),
                                           .input = input,
                                           .max_length = 16};
          try {
            detail::require_options(options);
          } catch (std::invalid_argument const&) {
            continue;  // contradictory: weights_test.cpp
          }
          all.push_back(options);
        }
      }
    }
  }
  return all;
}

}  // namespace

TEST_CASE("scores follow the formulas in every mode, convention and position feature") {
  std::mt19937 random(7);
  auto const options = every_option();
  CHECK(options.size() == 110);  // 2 inputs x (20 + 20 + 15), of the forms pytorch, cho and none
  double worst = 0.0;
  for (controller_options const& chosen : options) {
    CAPTURE(word_of(chosen.gru));
    CAPTURE(word_of(chosen.mode));
    CAPTURE(word_of(chosen.position));
    auto const weights = random_controller(random, chosen);
    controller const scorer(weights);
    literal::controller const model(weights);
    auto const text = random_text(random, weights.inputs, 9);
    auto state = scorer.start();
    for (std::size_t n = 0; n < text.size(); ++n) {
      embeddings_t const so_far(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(n) + 1);
      auto const expected = model.logits(so_far);
      auto const check = [&](float found, double wanted) {
        worst = std::max(worst, std::abs(static_cast<double>(found) - wanted));
        CHECK(std::abs(static_cast<double>(found) - wanted) < 5e-6);
      };
      if (!chosen.rescores()) {
        auto const logits = heard(scorer, state, text[n]);
        for (std::size_t o = 0; o < expected.size(); ++o) check(logits[o], expected[o][n]);
      } else {
        scorer.hear(state, text[n]);
        auto const logits = scores(scorer, state);
        for (std::size_t o = 0; o < expected.size(); ++o) {
          for (std::size_t i = 0; i <= n; ++i) check(logits[o * (n + 1) + i], expected[o][i]);
        }
      }
    }
  }
  MESSAGE("largest difference " << worst);
}

TEST_CASE("a static score is the same whatever comes after, and however the tokens came") {
  std::mt19937 random(8);
  for (controller_options const& chosen : every_option()) {
    if (chosen.rescores()) continue;
    controller const scorer(random_controller(random, chosen, 19, 21, 2));
    auto const text = random_text(random, 19, 40);
    auto whole = scorer.start();
    auto const at_once = heard(scorer, whole, joined(text));
    for (unsigned const longest : {1U, 3U, 11U}) {
      auto state = scorer.start();
      std::vector<float> logits;
      for (std::size_t first = 0; first < text.size();) {
        std::size_t const end = std::min<std::size_t>(first + 1 + random() % longest, text.size());
        auto const part = heard(scorer, state, joined(text, first, end));
        logits.insert(logits.end(), part.begin(), part.end());
        first = end;
      }
      CHECK(logits == at_once);  // to the last bit
      CHECK(std::equal(state.recent.end() - 21, state.recent.end(), whole.recent.end() - 21));
      CHECK(state.values.empty());  // no history
    }
  }
}

TEST_CASE("a score of the other modes does not depend on how the tokens came") {
  std::mt19937 random(9);
  for (controller_options const& chosen : every_option()) {
    if (!chosen.rescores()) continue;
    controller const scorer(random_controller(random, chosen, 6, 18, 2));
    auto const text = random_text(random, 6, 30);
    auto whole = scorer.start();
    scorer.hear(whole, joined(text));
    auto single = scorer.start();
    for (auto const& embedding : text) {
      scorer.hear(single, embedding);
      CHECK(scores(scorer, single).size() == static_cast<std::size_t>(2 * single.count));
    }
    CHECK(scores(scorer, single) == scores(scorer, whole));
  }
}

TEST_CASE("a rejected draft leaves no trace") {
  std::mt19937 random(10);
  for (controller_options const& chosen : every_option()) {
    controller const scorer(random_controller(random, chosen));
    auto const text = random_text(random, 6, 12);
    auto const other = random_text(random, 6, 5);
    for (index_t accepted = 0; accepted <= 5; ++accepted) {
      auto const stay = static_cast<std::size_t>(accepted);
      auto drafting = scorer.start();
      scorer.hear(drafting, joined(text, 0, 7));
      scorer.hear(drafting, joined(other));
      scorer.truncate(drafting, 7 + accepted);
      auto straight = scorer.start();
      scorer.hear(straight, joined(text, 0, 7));
      if (stay > 0) scorer.hear(straight, joined(other, 0, stay));
      CHECK(drafting.count == straight.count);
      if (chosen.rescores()) {
        CHECK(scores(scorer, drafting) == scores(scorer, straight));
        scorer.hear(drafting, joined(text, 7, 12));
        scorer.hear(straight, joined(text, 7, 12));
        CHECK(scores(scorer, drafting) == scores(scorer, straight));
      } else {
        CHECK(heard(scorer, drafting, joined(text, 7, 12)) ==
              heard(scorer, straight, joined(text, 7, 12)));
      }
    }
  }
}

TEST_CASE("a fork and its origin go their own ways") {
  std::mt19937 random(11);
  controller const scorer(random_controller(random, {.mode = score_mode::query_conditioned}));
  auto const text = random_text(random, 6, 8);
  auto origin = scorer.start();
  scorer.hear(origin, joined(text, 0, 5));
  auto fork = origin;
  scorer.hear(fork, joined(text, 5, 8));
  auto const before = scores(scorer, fork);
  scorer.hear(origin, joined(text, 0, 3));
  CHECK(scores(scorer, fork) == before);
  CHECK(scores(scorer, origin) != before);
}

TEST_CASE("sequences of one batch do not see each other") {
  std::mt19937 random(12);
  controller const scorer(random_controller(random, {}));
  std::vector<controller_state> alone(3, scorer.start());
  std::vector<controller_state> together(3, scorer.start());
  std::vector<controller_state*> const rows{&together[0], &together[1], &together[2]};
  for (int step = 0; step < 20; ++step) {
    std::vector<index_t> counts;
    std::vector<float> batch;
    std::vector<float> expected;
    for (controller_state& state : alone) {
      counts.push_back(static_cast<index_t>(random() % 4));  // 0: not active in this step
      auto const part = joined(random_text(random, 6, static_cast<std::size_t>(counts.back())));
      auto const logits = heard(scorer, state, part);
      batch.insert(batch.end(), part.begin(), part.end());
      expected.insert(expected.end(), logits.begin(), logits.end());
    }
    std::vector<float> logits(expected.size());
    scorer.hear(rows, counts, batch, logits);
    CHECK(logits == expected);
  }
}

TEST_CASE("an engine's own product, and a table of the vocabulary, give the same scores") {
  std::mt19937 random(13);
  for (score_mode const mode : {score_mode::static_score, score_mode::bidirectional}) {
    controller_options const chosen{.mode = mode, .input = input_scaling::rms};
    controller const scorer(random_controller(random, chosen, 33, 17, 1));
    auto const vocabulary = random_text(random, 33, 10);
    auto const table = input_products(scorer.weights(), joined(vocabulary));
    auto const width = static_cast<std::size_t>(scorer.weights().product_rows());
    std::vector<float> embeddings;
    std::vector<float> products;
    for (int i = 0; i < 25; ++i) {
      auto const id = random() % vocabulary.size();
      embeddings.insert(embeddings.end(), vocabulary[id].begin(), vocabulary[id].end());
      auto const row = table.begin() + static_cast<std::ptrdiff_t>(id * width);
      products.insert(products.end(), row, row + static_cast<std::ptrdiff_t>(width));
    }
    int calls = 0;
    auto const naive = [&](float const* w,
                           index_t rows,
                           index_t columns,
                           float const* x,
                           index_t tokens,
                           float* out) {
      ++calls;
      for (index_t i = 0; i < tokens * rows; ++i) {
        out[i] = 0.0F;
        for (index_t k = 0; k < columns; ++k) {
          out[i] += w[i % rows * columns + k] * x[i / rows * columns + k];
        }
      }
    };
    bool const is_static = mode == score_mode::static_score;
    std::vector<float> plain(25);
    std::vector<float> by_engine(25);
    std::vector<float> by_table(25);
    auto const run = [&](std::vector<float>& logits, auto&& hear) {
      auto state = scorer.start();
      hear(state, is_static ? std::span<float>(logits) : std::span<float>());
      if (!is_static) scorer.score(state, logits);
    };
    run(plain, [&](auto& state, auto logits) { scorer.hear(state, embeddings, logits); });
    run(by_engine,
        [&](auto& state, auto logits) { scorer.hear(state, embeddings, logits, naive); });
    run(by_table, [&](controller_state& state, auto logits) {
      controller_state* const one = &state;
      index_t const count = 25;
      scorer.hear_products(std::span(&one, 1), std::span(&count, 1), products, logits);
    });
    CHECK(calls == (is_static ? 1 : 2));  // one matrix product over all tokens, per direction
    CHECK(by_table == plain);
    for (std::size_t i = 0; i < plain.size(); ++i) CHECK(std::abs(by_engine[i] - plain[i]) < 5e-6F);
  }
}

TEST_CASE("sizes that do not fit and calls in the wrong order are refused") {
  std::mt19937 random(14);
  controller const fixed(random_controller(random, {}));
  controller const moving(random_controller(random, {.mode = score_mode::bilinear}));
  auto state = fixed.start();
  std::vector<float> const two(2 * 6, 0.5F);
  std::vector<float> logits(2 * 3);
  auto const refused = [](auto&& call, std::string const& words) {
    try {
      call();
      FAIL_CHECK("accepted: " << words);
    } catch (std::logic_error const& error) {
      CHECK_MESSAGE(std::string(error.what()).find(words) != std::string::npos, error.what());
    }
  };
  refused([&] { fixed.hear(state, std::span(two).first(7)); },
          "7 numbers, expected a multiple of 6");
  refused([&] { fixed.hear(state, two, std::span(logits).first(5)); },
          "room for 5 logits, expected 2 tokens x 3");
  refused([&] { fixed.score(state, logits); }, "score() in the static mode");
  CHECK(state.count == 0);
  fixed.hear(state, two, logits);
  fixed.hear(state, std::span(two).first(6));
  refused([&] { fixed.truncate(state, 1); }, "truncate to 1 tokens: expected 2 to 3");
  refused([&] { fixed.truncate(state, 4); }, "truncate to 4 tokens: expected 2 to 3");
  auto dynamic = moving.start();
  refused([&] { moving.hear(dynamic, two, logits); }, "no logits in mode bilinear");
  moving.hear(dynamic, two);
  refused([&] { moving.score(dynamic, std::span(logits).first(3)); },
          "room for 3 logits, expected 3 outputs x 2 tokens");
}

}  // namespace adore::testing
