// SPDX-License-Identifier: Apache-2.0
// Weights are read by their names, and whatever does not fit is refused in a sentence that says
// what was found and what was expected.
#include "adore/controller/weights.hpp"

#include "adore/controller/controller.hpp"
#include "adore/controller/make_weights.hpp"
#include "random_controller.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <random>
#include <stdexcept>
#include <string>

namespace adore::testing {

namespace {

tensor_file file_of(controller_options const& options = {}) {
  std::mt19937 random(5);
  return tensor_file(random_controller(random, options));
}

void check_refused(tensor_file const& file, std::string const& sentence) {
  try {
    file.read();
    FAIL_CHECK("accepted, expected: " << sentence);
  } catch (std::invalid_argument const& error) {
    CHECK(std::string(error.what()) == "adore: controller: " + sentence);
  }
}

}  // namespace

TEST_CASE("weights come back as they were given, with their options and sizes") {
  std::mt19937 random(6);
  for (score_mode const mode : {score_mode::static_score,
                                score_mode::query_conditioned,
                                score_mode::bilinear,
                                score_mode::bidirectional}) {
    controller_options const options{.gru = gru_form::cho,
                                     .mode = mode,
                                     .position = position_feature::log1p,
                                     .input = input_scaling::rms,
                                     .max_length = 77};
    auto const given = random_controller(random, options, 4, 3, 2);
    auto const read = tensor_file(given).read();
    CHECK(read.options == options);
    CHECK(read.inputs == 4);
    CHECK(read.hidden == 3);
    CHECK(read.outputs == 2);
    int compared = 0;
    tensor_file const expected(given);
    controller_weights::tensors(
        read, [&](std::string const& name, auto const& values, auto const&, bool needed) {
          if (!needed) return;
          CHECK(values == expected.tensors.at(name).values);
          ++compared;
        });
    CHECK(compared == (mode == score_mode::static_score    ? 10
                       : mode == score_mode::bidirectional ? 16
                                                           : 11));
  }
}

TEST_CASE("options that the text does not give have their defaults") {
  auto file = file_of();
  file.texts.clear();
  CHECK(file.read().options == controller_options{});
  // a mode that is a position feature needs no second word
  file.texts = {{"score_mode", "distance"}};
  CHECK(file.read().options.position == position_feature::distance);
  file.texts = {{"score_mode", "index_over_length"}};
  CHECK(file.read().options.position == position_feature::index_over_length);
}

TEST_CASE("tensors that are missing, cut, misshapen, not finite or not used are refused by name") {
  auto file = file_of();
  file.tensors.erase("position.bias");
  check_refused(file, "tensor position.bias is missing");

  file = file_of();
  file.tensors.erase("output.weight");
  check_refused(file, "tensor output.weight is missing");

  file = file_of();
  file.tensors["gru.weight_hh_l0"].shape = {5, 15};
  check_refused(file, "tensor gru.weight_hh_l0 has shape [5, 15], expected [15, 5]");

  file = file_of();
  file.tensors["position.weight"].shape = {5, 1};
  check_refused(file, "tensor position.weight has shape [5, 1], expected [5]");

  file = file_of();
  file.tensors["output.weight"].shape = {15};
  check_refused(file,
                "tensor output.weight has shape [15], expected a matrix of 1 to 1048576 rows and "
                "columns");

  file = file_of();
  file.tensors["gru.weight_ih_l0"].shape = {15, -6};
  check_refused(file,
                "tensor gru.weight_ih_l0 has shape [15, -6], expected a matrix of 1 to 1048576 "
                "rows and columns");

  file = file_of();
  file.tensors["interaction.weight"].values.pop_back();
  check_refused(file, "tensor interaction.weight has 24 numbers, expected 25 of shape [5, 5]");

  file = file_of();
  file.tensors["output.bias"].values[1] = std::numeric_limits<float>::quiet_NaN();
  check_refused(file, "tensor output.bias has nan at index 1, expected finite numbers");

  file = file_of();
  file.tensors["gru.bias_ih_l0"].values[14] = std::numeric_limits<float>::infinity();
  check_refused(file, "tensor gru.bias_ih_l0 has inf at index 14, expected finite numbers");

  file = file_of({.mode = score_mode::query_conditioned});
  file.texts["score_mode"] = "static";
  check_refused(file,
                "tensor query.weight is there, but not used with gru = pytorch, score_mode = "
                "static");

  file = file_of();
  file.texts["score_mode"] = "bilinear";
  check_refused(file, "tensor bilinear.weight is missing");

  file = file_of();
  file.tensors["input.weight"] = {{5, 6}, std::vector<float>(30)};
  check_refused(file, "tensor input.weight is there, but not used with gru = pytorch");
}

TEST_CASE("words that are unknown or contradict each other are refused") {
  auto file = file_of();
  file.texts["score_mode"] = "dynamic";
  check_refused(file,
                "score_mode = 'dynamic': must be one of static, distance, index_over_length, "
                "query_conditioned, bilinear, bidirectional");
  file = file_of();
  file.texts["gru"] = "lstm";
  check_refused(file, "gru = 'lstm': must be one of pytorch, cho, none");
  file = file_of();
  file.texts["input"] = "";
  check_refused(file, "input = '': must be one of none, rms");
  file = file_of();
  file.texts["position_feature"] = "distance";
  check_refused(file,
                "score_mode = static: position_feature distance changes the score at every step; "
                "name it as the score_mode");
  file.texts["score_mode"] = "index_over_length";
  check_refused(file, "position_feature = distance: score_mode index_over_length is that feature");
  for (char const* const length : {"4096.5", "", "many"}) {
    file = file_of();
    file.texts["max_length"] = length;
    check_refused(file, "max_length = '" + std::string(length) + "': must be a number of tokens");
  }
  file = file_of();
  file.texts["max_length"] = "0";
  check_refused(file, "max_length = 0: must be at least 1");
  file = file_of({.gru = gru_form::none});
  file.texts["score_mode"] = "bidirectional";
  check_refused(file, "gru = none: score_mode bidirectional needs a recurrence to run backwards");
}

TEST_CASE("a controller refuses weights that were put together wrongly") {
  std::mt19937 random(7);
  auto weights = random_controller(random, {});
  weights.hidden = 0;
  CHECK_THROWS_AS(controller{weights}, std::invalid_argument);
  weights = random_controller(random, {});
  weights.query.resize(25);
  CHECK_THROWS_WITH_AS(controller{weights},
                       "adore: controller: tensor query.weight has 25 numbers, expected 0: these "
                       "options do not use it",
                       std::invalid_argument);
}

}  // namespace adore::testing
