// SPDX-License-Identifier: Apache-2.0
// The recurrent cell against hand-computed steps, in both conventions, and against PyTorch's own.
#include "adore/controller/gru.hpp"

#include "adore/controller/linear.hpp"
#include "gru_of_pytorch.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace adore::testing {

namespace {

/// One unit, one input; all numbers are 0 but b_iu = ln 3, W_in = 1, W_hn = 1, b_hn = 1.
template <class Real>
struct one_unit {
  Real hidden_weight[3] = {0, 0, 1};
  Real hidden_bias[3] = {0, 0, 1};

  Real step(gru_form form, Real x, Real z) const {
    Real const input[3] = {0, std::log(Real{3}), x};
    Real scratch[3];
    gru_cell<Real>{form, 1, hidden_weight, hidden_bias}.step(input, &z, scratch);
    return z;
  }
};

template <class Real>
void check_steps(double tolerance) {
  one_unit<Real> const unit;
  auto const off = [&](Real found, double expected) {
    return std::abs(static_cast<double>(found) - expected);
  };
  CHECK(off(unit.step(gru_form::pytorch, 1, Real{0.5}), 0.6103438846243219) <= tolerance);
  CHECK(off(unit.step(gru_form::cho, 1, Real{0.5}), 0.8585195860541102) <= tolerance);
  Real z = 0;
  z = unit.step(gru_form::pytorch, 1, z);
  CHECK(off(z, 0.2262870634112166) <= tolerance);
  z = unit.step(gru_form::pytorch, -1, z);
  CHECK(off(z, 0.07755353323672869) <= tolerance);
  z = unit.step(gru_form::pytorch, Real{0.5}, z);
  CHECK(off(z, 0.2525162909090795) <= tolerance);
}

std::vector<float> draw(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = normal(random);
  return numbers;
}

/// States after each of the tokens that PyTorch's weights are tried on.
std::vector<float> states_of(gru_form form) {
  using namespace gru_of_pytorch;
  std::vector<float> products(tokens * 3 * hidden);
  row_by_row{}(weight_ih, 3 * hidden, inputs, embeddings, tokens, products.data());
  for (std::size_t i = 0; i < products.size(); ++i) products[i] += bias_ih[i % (3 * hidden)];
  gru_cell<float> const cell{form, hidden, weight_hh, bias_hh};
  std::vector<float> const before(hidden, 0.0F);
  std::vector<float> found(tokens * hidden);
  std::vector<float> scratch(3 * hidden);
  scan(cell, products.data(), 3 * hidden, tokens, before.data(), found.data(), scratch.data());
  return found;
}

template <std::size_t Size>
void check_near(std::vector<float> const& found, float const (&expected)[Size]) {
  REQUIRE(found.size() == Size);
  float worst = 0.0F;
  for (std::size_t i = 0; i < Size; ++i) {
    worst = std::max(worst, std::abs(found[i] - expected[i]));
  }
  MESSAGE("largest difference " << worst);
  CHECK(worst < 5e-6F);
}

}  // namespace

TEST_CASE("one unit takes the steps that were computed by hand") {
  check_steps<double>(1e-12);
  check_steps<float>(5e-6);
}

TEST_CASE("the cell agrees with PyTorch's GRU on random weights") {
  check_near(states_of(gru_form::pytorch), gru_of_pytorch::states);
}

TEST_CASE("the cell agrees with the GRU in Cho's form that controllers are trained with") {
  check_near(states_of(gru_form::cho), gru_of_pytorch::states_of_cho);
}

TEST_CASE("Cho's cell follows its formulas over several units") {
  std::mt19937 random(3);
  constexpr index_t hidden = 5;
  auto const weight = draw(random, 3 * hidden * hidden);
  auto const bias = draw(random, 3 * hidden);
  auto const input = draw(random, 3 * hidden);
  auto const before = draw(random, hidden);
  std::vector<double> expected;
  auto const gate = [&](index_t row, auto const& factor) {
    double sum =
        double{input[static_cast<std::size_t>(row)]} + double{bias[static_cast<std::size_t>(row)]};
    for (index_t k = 0; k < hidden; ++k) {
      sum += double{weight[static_cast<std::size_t>(row * hidden + k)]} * factor(k);
    }
    return sum;
  };
  auto const logistic = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  auto const old = [&](index_t k) { return double{before[static_cast<std::size_t>(k)]}; };
  for (index_t k = 0; k < hidden; ++k) {
    double const update = logistic(gate(hidden + k, old));
    double const candidate =
        std::tanh(gate(2 * hidden + k, [&](index_t j) { return logistic(gate(j, old)) * old(j); }));
    expected.push_back((1.0 - update) * old(k) + update * candidate);
  }
  auto state = before;
  std::vector<float> scratch(3 * hidden);
  gru_cell<float>{gru_form::cho, hidden, weight.data(), bias.data()}.step(
      input.data(), state.data(), scratch.data());
  for (std::size_t k = 0; k < state.size(); ++k) {
    CHECK(state[k] == doctest::Approx(expected[k]).epsilon(1e-6));
  }
}

TEST_CASE("one token or many: a product is the same to the last bit") {
  std::mt19937 random(4);
  for (index_t const columns : {1, 15, 16, 17, 64, 131}) {
    constexpr index_t rows = 7;
    constexpr index_t tokens = 19;
    auto const weight = draw(random, static_cast<std::size_t>(rows * columns));
    auto const input = draw(random, static_cast<std::size_t>(tokens * columns));
    std::vector<float> all(tokens * rows);
    std::vector<float> one(rows);
    row_by_row{}(weight.data(), rows, columns, input.data(), tokens, all.data());
    for (index_t token = 0; token < tokens; ++token) {
      row_by_row{}(weight.data(), rows, columns, input.data() + token * columns, 1, one.data());
      CHECK(std::equal(one.begin(), one.end(), all.begin() + token * rows));
      double expected = 0.0;
      for (index_t k = 0; k < columns; ++k) {
        expected += double{weight[static_cast<std::size_t>(k)]} *
                    double{input[static_cast<std::size_t>(token * columns + k)]};
      }
      CHECK(one[0] == doctest::Approx(expected).epsilon(1e-4));
    }
  }
}

}  // namespace adore::testing
