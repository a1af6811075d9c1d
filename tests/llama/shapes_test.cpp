// SPDX-License-Identifier: Apache-2.0
// Shapes of models with random weights, as text.
#include "llama/gpu/shapes.hpp"

#include <doctest/doctest.h>

#include <stdexcept>

using llama_example::model;
using llama_example::gpu::shape_of;

TEST_CASE("a shape is a model's name, or has numbers of its own") {
  model const named = shape_of("8b");
  CHECK(named.layers == 32);
  CHECK(named.vocabulary == 128256);
  CHECK(named.rope_channels == 128);

  model const own = shape_of("8b(layers=8, width=16384, heads=128, channels=64, hidden=53248)");
  CHECK(own.layers == 8);
  CHECK(own.width == 16384);
  CHECK(own.heads == 128);
  CHECK(own.kv_heads == 8);
  CHECK(own.channels == 64);
  CHECK(own.rope_channels == 64);
  CHECK(own.hidden == 53248);
  CHECK(own.vocabulary == 128256);
}

TEST_CASE("a shape that is none is refused in a sentence") {
  auto const refused = [](char const* text, char const* why) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(shape_of(text), why, std::invalid_argument);
  };
  refused("9b", "there is no shape '9b'; there are 7b, 8b, 135m");
  refused("8b(ffn=2)",
          "shape 8b: ffn = 2: a shape has no such number; its numbers are layers, width, heads, "
          "kv_heads, channels, hidden, vocabulary");
  refused("8b(layers=0)", "shape 8b: layers = 0: must be a number from 1 to 1048576");
  refused("8b(layers=many)", "shape 8b: layers = many: must be a number from 1 to 1048576");
  refused("8b(width=99999999999)",
          "shape 8b: width = 99999999999: must be a number from 1 to 1048576");
  refused("8b(channels=512)", "shape 8b: channels = 512: must be a number from 1 to 256");
  refused("8b(heads=12)", "shape 8b: heads = 12: must be a multiple of kv_heads = 8");
}
