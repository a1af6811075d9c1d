// SPDX-License-Identifier: Apache-2.0
// The labels that controllers are trained on: by hand, against a literal computation from the same
// attention, and through the engine against the attention of a naive forward pass.
#include "labels.hpp"

#include "crops.hpp"
#include "host_attention.hpp"
#include "label_file.hpp"
#include "llama/naive_forward.hpp"
#include "llama/tiny_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace {

using controller_labels::crop_labels;
using controller_labels::label_kind;
using controller_labels::label_options;
using controller_labels::label_outputs;
using llama_example::testing::naive_vector;

/// [layer][query][token 0..query], summed over the heads.
using attention_t = std::vector<std::vector<naive_vector>>;
using set_t = std::set<int>;

std::size_t at(int i) {
  return static_cast<std::size_t>(i);
}

/// Multiples of 1/16, so that sums are exact and ties are frequent.
attention_t random_attention(int layers, int tokens, unsigned seed) {
  std::mt19937 random(seed);
  attention_t attention(at(layers), std::vector<naive_vector>(at(tokens)));
  for (auto& layer : attention) {
    for (std::size_t n = 0; n < layer.size(); ++n) {
      for (std::size_t i = 0; i <= n; ++i)
        layer[n].push_back(static_cast<double>(random() % 8) / 16.0);
    }
  }
  return attention;
}

crop_labels labelled(label_options const& options,
                     attention_t const& attention,
                     std::vector<int> queries) {
  auto const layers = static_cast<int>(attention.size());
  auto const tokens = static_cast<int>(attention[0].size());
  crop_labels labels(options, layers, tokens, std::move(queries));
  for (int layer = 0; layer < layers; ++layer) {
    for (int n = 0; n < tokens; ++n) {
      naive_vector const& row = attention[at(layer)][at(n)];
      labels.see(layer, n, std::vector<float>(row.begin(), row.end()));
    }
  }
  return labels;
}

/// [output][query] of the packed sets.
std::vector<std::vector<set_t>> unpacked(crop_labels const& labels) {
  auto const packed = labels.sets();
  std::size_t const bytes = (at(labels.tokens()) + 7) / 8;
  std::size_t const queries = labels.queries().size();
  REQUIRE(packed.size() == at(labels.outputs()) * queries * bytes);
  std::vector<std::vector<set_t>> sets(at(labels.outputs()), std::vector<set_t>(queries));
  for (std::size_t set = 0; set < at(labels.outputs()) * queries; ++set) {
    for (std::size_t bit = 0; bit < 8 * bytes; ++bit) {
      if ((packed[set * bytes + bit / 8] >> (bit % 8) & 1) != 0) {
        sets[set / queries][set % queries].insert(static_cast<int>(bit));
      }
    }
  }
  return sets;
}

/// The `count` largest, among equals the newest: all sorted.
set_t largest(naive_vector const& values, int count) {
  std::vector<std::pair<double, int>> order;
  for (std::size_t i = 0; i < values.size(); ++i) order.push_back({values[i], static_cast<int>(i)});
  std::sort(order.rbegin(), order.rend());
  set_t chosen;
  for (int i = 0; i < count; ++i) chosen.insert(order[at(i)].second);
  return chosen;
}

/// What queries first..last of some layers attend to, [token 0..n].
naive_vector summed(attention_t const& attention,
                    std::vector<int> const& layers,
                    int first,
                    int last,
                    int n,
                    double factor = 1.0) {
  naive_vector sums(at(n) + 1, 0.0);
  for (int const layer : layers) {
    for (int j = first; j <= last; ++j) {
      for (int i = 0; i <= std::min(n, j); ++i) {
        sums[at(i)] += std::pow(factor, last - j) * attention[at(layer)][at(j)][at(i)];
      }
    }
  }
  return sums;
}

/// Sets, attention and masses of kinds query and future, from their definitions.
void check_against_definition(crop_labels const& labels,
                              label_options const& options,
                              attention_t const& attention,
                              double tolerance) {
  auto const sets = unpacked(labels);
  auto const known = labels.attention();
  for (int output = 0; output < labels.outputs(); ++output) {
    std::vector<int> layers;
    for (int layer = 0; layer < static_cast<int>(attention.size()); ++layer) {
      if (options.outputs == label_outputs::model || layer == output) layers.push_back(layer);
    }
    for (std::size_t q = 0; q < labels.queries().size(); ++q) {
      int const n = labels.queries()[q];
      bool const future = options.kind == label_kind::future;
      auto const sums = future ? summed(attention, layers, n + 1, n + options.horizon, n)
                               : summed(attention, layers, n, n, n);
      CHECK(sets[at(output)][q] == largest(sums, options.k));
      auto mean = sums;
      mean.resize(at(labels.tokens()), 0.0);
      for (std::size_t i = 0; i < mean.size(); ++i) {
        std::size_t const place = (at(output) * labels.queries().size() + q) * mean.size() + i;
        double const expected = mean[i] / (future ? options.horizon : 1);
        CHECK(double{known[place]} == doctest::Approx(expected).epsilon(tolerance));
      }
      if (options.mass_factor == 0.0F) continue;
      auto mass = summed(attention, layers, 0, n, n, double{options.mass_factor});
      mass.resize(at(labels.tokens()), 0.0);
      for (std::size_t i = 0; i < mass.size(); ++i) {
        std::size_t const place = (at(output) * labels.queries().size() + q) * mass.size() + i;
        CHECK(double{labels.mass()[place]} == doctest::Approx(mass[i]).epsilon(tolerance));
      }
    }
  }
}

std::vector<int> some_queries(label_options const& options, int tokens, int count, unsigned seed) {
  return controller_labels::choose_queries(
      controller_labels::queries_of(options, tokens), count, seed, 0);
}

}  // namespace

TEST_CASE("label sets by hand: query, future, mass") {
  // one layer; query n attends:            n = 0   1          2                3
  attention_t const attention{{{16}, {4, 12}, {8, 2, 6}, {1, 9, 5, 1}}};
  label_options options{.kind = label_kind::query, .k = 1, .mass_factor = 0.5F};
  crop_labels const by_query = labelled(options, attention, {1, 2, 3});
  CHECK(unpacked(by_query)[0] == std::vector<set_t>{{1}, {0}, {1}});
  CHECK(by_query.mass() == std::vector<float>{12, 12, 0, 0, 14, 8, 6, 0, 8, 13, 8, 1});
  CHECK(by_query.attention() == std::vector<float>{4, 12, 0, 0, 8, 2, 6, 0, 1, 9, 5, 1});
  options.kind = label_kind::future;
  options.horizon = 2;
  // queries 2 and 3 give tokens 0 and 1 the weights 8 + 1 and 2 + 9
  crop_labels const by_future = labelled(options, attention, {1});
  CHECK(unpacked(by_future)[0] == std::vector<set_t>{{1}});
  CHECK(by_future.attention() == std::vector<float>{4.5F, 5.5F, 0, 0});
}

TEST_CASE("label sets by hand: uniform") {
  // two layers, K = 2, so each query of a layer has one vote, a tie's vote is the newest's
  attention_t const attention{{{1}, {1, 0}, {3, 0, 1}, {4, 0, 0, 4}},
                              {{1}, {1, 1}, {0, 2, 1}, {4, 0, 3, 0}}};
  label_options const options{.kind = label_kind::uniform, .k = 2};
  // votes: 0, 0, 0, 3 and 0, 1, 1, 0 = five for 0, two for 1, one for 3
  CHECK(unpacked(labelled(options, attention, {3}))[0] == std::vector<set_t>{{0, 1}});
}

TEST_CASE("label sets of kinds query and future are what their definitions say") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed + 1000);
    auto const among = [&](int first, int last) {
      return std::uniform_int_distribution<int>(first, last)(random);
    };
    label_options options;
    options.kind = among(0, 1) == 0 ? label_kind::query : label_kind::future;
    options.outputs = among(0, 1) == 0 ? label_outputs::model : label_outputs::layers;
    options.k = among(1, 6);
    options.horizon = options.kind == label_kind::future ? among(1, 5) : 0;
    options.mass_factor = among(0, 1) == 0 ? 0.0F : 0.5F;
    auto const attention = random_attention(among(1, 4), among(17, 30), seed);
    auto const tokens = static_cast<int>(attention[0].size());
    crop_labels const labels = labelled(options, attention, some_queries(options, tokens, 5, seed));
    // halved sums of few bits are exact, but for the oldest
    check_against_definition(labels, options, attention, 1e-6);
  }
}

TEST_CASE("label sets of kind uniform are the votes of all layers and queries") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    label_options const options{.kind = label_kind::uniform, .k = 2 + static_cast<int>(seed % 7)};
    auto const attention = random_attention(3, 21, seed);
    std::vector<int> votes(21, 0);
    naive_vector mass(21, 0.0);
    for (auto const& layer : attention) {
      for (auto const& query : layer) {
        int const count = std::min(options.k / 2, static_cast<int>(query.size()));
        for (int const i : largest(query, count)) ++votes[at(i)];
        for (std::size_t i = 0; i < query.size(); ++i) mass[i] += query[i];
      }
    }
    std::vector<std::tuple<int, double, int>> order;
    for (int i = 0; i < 21; ++i) order.emplace_back(votes[at(i)], mass[at(i)], i);
    std::sort(order.rbegin(), order.rend());
    set_t expected;
    for (int i = 0; i < options.k; ++i) expected.insert(std::get<2>(order[at(i)]));
    CHECK(unpacked(labelled(options, attention, {20}))[0][0] == expected);
  }
}

TEST_CASE("labels through the engine are those of a naive forward pass") {
  llama_example::testing::temporary_folder const folder;
  llama_example::testing::tiny_model const numbers({.layers = 3});
  numbers.write(folder.file("tiny.gguf"));
  auto const weights = llama_example::read_model(folder.file("tiny.gguf"));
  constexpr int tokens = 150;  // more than one step of the engine
  std::vector<std::vector<std::int32_t>> texts(3);
  std::mt19937 random(5);
  for (auto& text : texts) {
    for (int i = 0; i < tokens; ++i) text.push_back(static_cast<std::int32_t>(random() % 64));
  }
  std::vector<attention_t> attention(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    llama_example::testing::naive_forward(numbers, texts[i], tokens, &attention[i]);
  }
  for (auto const kind : {label_kind::query, label_kind::future}) {
    for (auto const outputs : {label_outputs::model, label_outputs::layers}) {
      label_options const options{.kind = kind,
                                  .outputs = outputs,
                                  .k = 12,
                                  .horizon = kind == label_kind::future ? 20 : 0,
                                  .mass_factor = 0.9F};
      std::vector<controller_labels::labelled_crop> crops;
      for (auto const& text : texts) {
        crops.push_back(
            {text, crop_labels(options, 3, tokens, some_queries(options, tokens, 9, 7))});
      }
      llama_example::engine engine(weights, 2);
      controller_labels::show_attention(engine, crops);
      for (std::size_t i = 0; i < crops.size(); ++i) {
        check_against_definition(crops[i].labels, options, attention[i], 1e-4);
      }
    }
  }
}

TEST_CASE("labels take layers in any order, but each layer's queries in turn") {
  auto const attention = random_attention(2, 10, 3);
  label_options const options{
      .kind = label_kind::future, .k = 3, .horizon = 2, .mass_factor = 0.5F};
  crop_labels alternating(options, 2, 10, {4, 6});
  CHECK_THROWS_AS(alternating.sets(), std::logic_error);
  for (int n = 0; n < 10; ++n) {
    for (int const layer : {1, 0}) {
      naive_vector const& row = attention[at(layer)][at(n)];
      alternating.see(layer, n, std::vector<float>(row.begin(), row.end()));
    }
  }
  crop_labels const in_order = labelled(options, attention, {4, 6});
  CHECK(alternating.sets() == in_order.sets());
  CHECK(alternating.mass() == in_order.mass());

  crop_labels labels(options, 2, 10, {4, 6});
  std::vector<float> const one{1.0F};
  CHECK_THROWS_AS(labels.see(0, 1, std::vector<float>{1.0F, 0.0F}), std::logic_error);
  CHECK_THROWS_AS(labels.see(2, 0, one), std::logic_error);
  CHECK_THROWS_AS(labels.see(-1, 0, one), std::logic_error);
  CHECK_THROWS_AS(labels.see(0, 0, std::vector<float>{1.0F, 0.0F}), std::logic_error);
  labels.see(0, 0, one);
  CHECK_THROWS_AS(labels.see(0, 0, one), std::logic_error);
}

TEST_CASE("labels that make no sense are refused by the name of the option") {
  auto const refused = [](label_options const& options, int tokens, std::vector<int> queries) {
    try {
      crop_labels const labels(options, 2, tokens, std::move(queries));
    } catch (std::invalid_argument const& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  auto const future = label_kind::future;
  auto const uniform = label_kind::uniform;
  CHECK(refused({.k = 0}, 9, {3}).starts_with("k = 0"));
  CHECK(refused({.k = 9}, 9, {8}).starts_with("tokens = 9"));
  CHECK(refused({.kind = future, .k = 3}, 9, {3}).starts_with("horizon = 0"));
  CHECK(refused({.k = 3, .horizon = 2}, 9, {3}).starts_with("horizon = 2"));
  CHECK(refused({.kind = future, .k = 6, .horizon = 3}, 9, {6}).starts_with("tokens = 9"));
  CHECK(refused({.kind = uniform, .outputs = label_outputs::layers, .k = 2}, 9, {8})
            .starts_with("outputs = layers"));
  CHECK(refused({.kind = uniform, .k = 1}, 9, {8}).starts_with("k = 1"));
  CHECK(refused({.kind = uniform, .k = 2, .attention = true}, 9, {8}).starts_with("attention"));
  CHECK(refused({.kind = uniform, .k = 2}, 9, {7}).starts_with("queries"));
  CHECK(refused({.k = 3}, 9, {}).starts_with("queries"));
  CHECK(refused({.k = 3}, 9, {2, 5}).starts_with("queries"));
  CHECK(refused({.k = 3}, 9, {5, 5}).starts_with("queries"));
  CHECK(refused({.k = 3}, 9, {5, 9}).starts_with("queries"));
  CHECK(refused({.k = 3, .mass_factor = 1.5F}, 9, {5}).starts_with("mass_factor = 1.5"));
}

TEST_CASE("a label file holds its sequences one after the other") {
  llama_example::testing::temporary_folder const folder;
  label_options const options{.k = 3, .mass_factor = 0.5F, .attention = true};
  controller_labels::label_file file(options);
  std::vector<std::uint8_t> sets;
  std::vector<std::vector<std::int32_t>> const tokens{{0, 1, 2, 3, 4, 5, 6, 7, 8},
                                                      {9, 8, 7, 6, 5, 4, 3, 2, 1}};
  for (unsigned seed = 0; seed < 2; ++seed) {
    auto const labels = labelled(options, random_attention(2, 9, seed), {4, 7});
    file.add(tokens[seed], labels);
    auto const added = labels.sets();
    sets.insert(sets.end(), added.begin(), added.end());
  }
  auto const shorter = labelled(options, random_attention(2, 8, 1), {4, 7});
  CHECK_THROWS_AS(file.add(tokens[0], shorter), std::invalid_argument);
  CHECK_THROWS_AS(file.add(std::span(tokens[0]).first(8), shorter), std::invalid_argument);
  file.write(folder.file("labels.safetensors"), {{"model", "tiny"}});

  auto const found = llama_example::read_safetensors(folder.file("labels.safetensors"));
  CHECK(found.metadata.at("model") == "tiny");
  CHECK(found.metadata.at("kind") == "query");
  CHECK(found.metadata.at("k") == "3");
  CHECK(found.tensors.at("tokens").shape == std::vector<std::int64_t>{2, 9});
  CHECK(found.tensors.at("queries").shape == std::vector<std::int64_t>{2, 2});
  CHECK(found.tensors.at("labels").shape == std::vector<std::int64_t>{2, 1, 2, 2});
  CHECK(found.tensors.at("attention").shape == std::vector<std::int64_t>{2, 1, 2, 9});
  CHECK(found.tensors.at("mass").shape == std::vector<std::int64_t>{2, 1, 2, 9});
  auto const bytes = std::as_bytes(std::span(sets));
  CHECK(std::equal(bytes.begin(),
                   bytes.end(),
                   found.tensors.at("labels").data.begin(),
                   found.tensors.at("labels").data.end()));
}

TEST_CASE("pieces of texts do not overlap and queries lie in their range") {
  std::vector<std::vector<std::int32_t>> texts(2);
  texts[0].resize(25);
  texts[1].resize(19);
  std::iota(texts[0].begin(), texts[0].end(), 0);
  std::iota(texts[1].begin(), texts[1].end(), 100);
  auto const crops = controller_labels::choose_crops(texts, 6, 7, 1);
  std::set<std::int32_t> seen;
  for (auto const& crop : crops) {
    REQUIRE(crop.size() == 6);
    CHECK(crop.back() == crop.front() + 5);
    seen.insert(crop.begin(), crop.end());
  }
  CHECK(seen.size() == 42);
  CHECK(controller_labels::choose_crops(texts, 6, 7, 1) == crops);
  CHECK(controller_labels::choose_crops(texts, 6, 7, 2) != crops);
  CHECK_THROWS_WITH_AS(controller_labels::choose_crops(texts, 6, 8, 1),
                       doctest::Contains("7 pieces of 6 tokens"),
                       std::invalid_argument);

  auto const queries = controller_labels::choose_queries({10, 29}, 8, 1, 0);
  CHECK(queries.size() == 8);
  CHECK(std::set<int>(queries.begin(), queries.end()).size() == 8);
  CHECK(std::is_sorted(queries.begin(), queries.end()));
  CHECK(queries.front() >= 10);
  CHECK(queries.back() <= 29);
  CHECK(controller_labels::choose_queries({10, 29}, 8, 1, 1) != queries);
  CHECK_THROWS_AS(controller_labels::choose_queries({10, 12}, 4, 1, 0), std::invalid_argument);
}
